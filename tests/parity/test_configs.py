"""Configs of checkpoints against what diffusers makes of them: scheduler classes, and how long texts are."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.diffusion.samplers import own_sampler
from sdjax.diffusion.scheduler_classes import OTHER_SOLVERS, UNSUPPORTED
from sdjax.diffusion.scheduler_config import SchedulerConfig
from tests import toys
from tests.diffusion.test_scheduler_classes import DEFAULTS, ROWS
from tests.golden import samplers as golden

pytestmark = pytest.mark.parity

diffusers = pytest.importorskip("diffusers", reason="needs torch: make parity", exc_type=ImportError)
torch = pytest.importorskip("torch", reason="needs torch: make parity", exc_type=ImportError)
reference = pytest.importorskip(
    "tests.golden.sampler_reference", reason="needs torch: make parity", exc_type=ImportError
)

# Classes that can't be made without arguments.
WITH_ARGUMENTS = {"AmusedScheduler", "RFD4ProteinaScheduler", "VQDiffusionScheduler"}


def classes() -> list[str]:
    """All scheduler classes of the installed diffusers."""
    found = (name for name in dir(diffusers) if name.endswith("Scheduler"))
    return sorted(name for name in found if not hasattr(getattr(diffusers, name), "_backends"))


def test_the_page_has_every_class_of_the_installed_diffusers() -> None:
    assert set(classes()) <= ROWS.keys()


@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - WITH_ARGUMENTS))
def test_recorded_default_configs_are_those_of_the_installed_diffusers(name: str) -> None:
    now = json.loads(getattr(diffusers, name)().to_json_string())
    assert {**DEFAULTS[name], "_diffusers_version": diffusers.__version__} == now


DRAWN = [name for name, row in ROWS.items() if row == "drawn as there"]


@pytest.mark.parametrize("name", DRAWN)
def test_a_class_at_its_default_config_draws_as_in_diffusers(name: str) -> None:
    plain = {key: value for key, value in DEFAULTS[name].items() if value != -np.inf}
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    case = golden.Case(7, tuple(fields.items()))
    config = SchedulerConfig.from_json(fields)
    assert own_sampler(name, config) is not None and name not in {*OTHER_SOLVERS, *UNSUPPORTED}
    assert golden.relative_error(golden.given(case), reference.by_reference(case)) <= case.tolerance


@pytest.mark.parametrize(("said", "positions"), [(40, 77), (77, 120)])
def test_texts_are_as_long_as_in_diffusers(tmp_path: Path, said: int, positions: int) -> None:
    network = dataclasses.replace(toys.TINY.text_encoder, max_position_embeddings=positions)
    folder = toys.write_toy(tmp_path / "toy", dataclasses.replace(toys.TINY, text_encoder=network))
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "model_max_length": said}), "utf-8")
    model = sdjax.load(folder)
    prompt = "a red apple on a castle " * 20
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    expected = pipeline.tokenizer(prompt, padding="max_length", max_length=said, truncation=True).input_ids
    assert list(model.tokenizer(prompt).ids) == expected
    with torch.no_grad():
        theirs = pipeline.text_encoder(torch.tensor([expected]))[0].numpy()
    ours = model.networks["text_encoder"].apply({"params": model.params["text_encoder"]}, jnp.array([expected]))
    assert ours.last_hidden_state.shape == (1, said, 32)
    np.testing.assert_allclose(np.asarray(ours.last_hidden_state), theirs, atol=1e-5)


def test_a_tokenizer_longer_than_the_text_encoder_is_refused_as_in_diffusers(tmp_path: Path) -> None:
    folder = toys.write_toy(tmp_path / "toy", toys.TINY)
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "model_max_length": 120}), "utf-8")
    with pytest.raises(ValueError, match="model_max_length = 120"):
        sdjax.load(folder, weights=False)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        pipeline.encode_prompt("a cat", "cpu", 1, False)
