"""Live comparison of prompts that name embeddings with diffusers' textual inversion."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import sdjax
from sdjax.adapters.embedding import check_width, read_embedding
from sdjax.text.prompt_tokenizer import FIRST_VECTOR
from sdjax.text.tokenize_prompt import tokenize_prompt
from tests import toys
from tests.golden import embeddings, networks, prompts

pytestmark = pytest.mark.parity

pytest.importorskip("torch", reason="needs torch: make parity", exc_type=ImportError)


@pytest.fixture(scope="module", params=embeddings.TOYS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, sdjax.Model]:
    """diffusers' pipeline with embeddings, and our model."""
    folder = tmp_path_factory.mktemp(request.param)
    toy = embeddings.TOYS[request.param]
    return request.param, embeddings.loaded(folder, toy), sdjax.load(toys.write_toy(folder / "ours", toy))


def test_encodings_are_diffusers(pair: tuple[str, Any, sdjax.Model], tmp_path: Path) -> None:
    _, pipeline, model = pair
    found = {}
    for number, name in enumerate(embeddings.NEW):
        vectors = embeddings.vectors(name, model.networks["text_encoder"].config.hidden_size)
        safetensors.numpy.save_file({name: vectors}, tmp_path / f"{number}.safetensors")
        found[name] = read_embedding(tmp_path / f"{number}.safetensors")
        check_width(found[name], model.params["text_encoder"])
    known = {name: len(embedding.vectors) for name, embedding in found.items()}
    worst = 0.0
    for prompt in embeddings.DIFFUSERS:
        read = tokenize_prompt(
            model.tokenizer, prompt, "", syntax="plain", emphasis="original", steps=1, embeddings=known
        )
        ids = np.array(read.readings[0].ids)
        ids = np.where(ids < FIRST_VECTOR, ids, ids - FIRST_VECTOR + model.networks["text_encoder"].config.vocab_size)
        width = model.networks["text_encoder"].config.hidden_size
        rows = np.concatenate([np.zeros((0, width), np.float32), *(found[name].vectors for name in read.embeddings)])
        ours = model.networks["text_encoder"].apply(
            {"params": model.params["text_encoder"]}, jnp.asarray(ids, jnp.int32), None, None,
            jnp.asarray(rows)[None] if len(rows) else None,
        )  # fmt: skip
        theirs = embeddings.by_diffusers(pipeline, prompt)
        worst = max(worst, float(np.abs(np.asarray(ours.last_hidden_state[0]) - theirs).max()))
    print(f"\nat most {worst:.1e} apart")
    assert worst < networks.TOLERANCE


def test_recordings_are_what_diffusers_gives_now(pair: tuple[str, Any, sdjax.Model]) -> None:
    name, pipeline, model = pair
    projection = prompts.projection(model.networks["text_encoder"].config.hidden_size)
    with np.load(embeddings.ENCODED) as recorded:
        for index, prompt in enumerate(embeddings.DIFFUSERS):
            now = embeddings.by_diffusers(pipeline, prompt).astype(np.float64) @ projection
            np.testing.assert_allclose(recorded[f"diffusers/{name}/{index}"], now, rtol=0, atol=networks.TOLERANCE)
