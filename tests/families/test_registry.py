"""Which family a checkpoint is, and that a family is all that a new kind of model takes."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from pipelines.convert import CLIP
from sdjax import extensions
from sdjax.checkpoints import convert
from sdjax.checkpoints.diffusers_folder import write_folder
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.families import registry
from sdjax.families.family import Configs, Family, FolderLayout, Networks, Pipeline, TextStates, Tokens
from sdjax.families.latent_upscaler import LATENT_UPSCALER
from sdjax.families.networks import CLIP_TEXT_MODEL
from sdjax.families.stable_diffusion import NETWORKS, SD1, SD2, predict
from sdjax.families.x4_upscaler import X4_UPSCALER
from sdjax.models import ConfigError
from sdjax.text.vocabulary import END, clip_vocabulary, cut_down, write_tokenizer
from tests import toys
from tests.golden import sd_upscalers

TEXTS = ("text_encoder", "text_encoder_2")


def encode_both(networks: Networks, tokens: Tokens) -> TextStates:
    """The states of both text encoders, one after the other in each."""
    arguments = (tokens.ids, tokens.mask, tokens.clip_skip, tokens.vectors)
    states = [networks.apply(name, *arguments).last_hidden_state for name in TEXTS]
    return TextStates(jnp.concatenate(states, axis=-1), None)


def mismatch(configs: Configs) -> str | None:
    width = sum(configs[name].hidden_size for name in TEXTS)
    found = configs["unet"].cross_attention_dim
    return None if found == width else f"the UNet's cross_attention_dim is {found}, expected {width}"


# As a package of someone else's would have it.
TWO_TEXTS = Family(
    "Two texts",
    {**NETWORKS, "text_encoder_2": CLIP_TEXT_MODEL},
    TEXTS,
    encode_both,
    predict,
    FolderLayout((Pipeline("MyPipeline", {"steps_offset": 1}),), extra_folders=("tokenizer_2",)),
    mismatch,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of that family, which is in the registry meanwhile."""
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, TWO_TEXTS))
    second = dataclasses.replace(toys.TINY.text_encoder, hidden_size=48, num_hidden_layers=2)
    unet = dataclasses.replace(toys.TINY.unet, cross_attention_dim=toys.TINY.text_encoder.hidden_size + 48)
    configs = {**toys.TINY.configs, "text_encoder_2": second, "unet": unet}
    rng = np.random.RandomState(12)
    shapes = {name: network.param_shapes(configs[name]) for name, network in TWO_TEXTS.networks.items()}
    write_folder(
        tmp_path,
        TWO_TEXTS,
        configs,
        scheduler=toys.TINY.scheduler,
        scheduler_class=toys.TINY.scheduler_class,
        special_tokens={},
        params={name: toys.random_params(tree, rng) for name, tree in shapes.items()},
        dtype=np.float32,
    )
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(tmp_path / name, cut_down(clip_vocabulary(), toys.WORDS), toys.LENGTH, END)
    return tmp_path


def test_a_family_of_two_text_encoders_is_loaded_and_draws(folder: Path) -> None:
    model = sdjax.load(folder)
    assert (model.family, model.variant_name) == (TWO_TEXTS, "Two texts")
    assert set(model.params) == set(model.networks) == {*TEXTS, "unet", "vae"}
    jobs = [sdjax.Job(prompt=prompt, seed=3, steps=2, sampler="euler") for prompt in ("a red apple", "a blue cat")]
    first, second = sdjax.generate(model, jobs, batch_size=2)
    assert not np.array_equal(first.image, second.image)


def test_what_counts_of_a_family_is_in_its_digest(folder: Path) -> None:
    before = sdjax.load(folder).digest
    (folder / "notes.json").write_text("{}")
    assert sdjax.load(folder).digest == before
    (folder / "tokenizer_2" / "added_tokens.json").write_text("{}")
    assert sdjax.load(folder).digest != before


def test_networks_that_do_not_fit_are_told_by_the_family(folder: Path) -> None:
    file = folder / "text_encoder_2" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_size": 32, "num_attention_heads": 1}))
    with pytest.raises(CheckpointError, match="cross_attention_dim is 80, expected 64"):
        sdjax.load(folder)


@pytest.mark.parametrize(("toy", "family"), [(toys.SD1, SD1), (toys.SD1_INPAINT, SD1), (toys.SD2_DEPTH, SD2)])
def test_families_that_share_a_pipeline_are_told_apart_by_configs(toy: toys.Toy, family: Family) -> None:
    assert registry.by_configs(registry.by_pipeline("StableDiffusionPipeline"), toy.configs) is family


def test_a_pipeline_is_of_its_family() -> None:
    assert registry.by_pipeline("StableDiffusionUpscalePipeline") == (X4_UPSCALER,)
    assert registry.by_pipeline("StableDiffusionLatentUpscalePipeline") == (LATENT_UPSCALER,)
    assert registry.by_pipeline("StableDiffusionXLPipeline") == registry.by_pipeline(None) == ()


def test_an_upscaler_is_no_model_to_load(tmp_path: Path) -> None:
    sd_upscalers.write(tmp_path, sd_upscalers.X2_TOY)
    with pytest.raises(CheckpointError, match="is an upscaler's, which jobs name as `upscaler`; expected one of"):
        sdjax.load(tmp_path)


def test_a_family_of_a_package_without_the_pipeline_that_names_it_is_an_error(monkeypatch):
    monkeypatch.setattr(extensions, "load", lambda group, name, kind: SD1)
    monkeypatch.setattr(extensions, "find", lambda group, name: "sdjax.families Other: a-package 1.0")
    with pytest.raises(
        extensions.ExtensionError, match=r"a-package 1\.0: its family has no pipeline of the name Other"
    ):
        registry.by_pipeline("Other")
    with pytest.raises(ConfigError, match="are those of none of Stable Diffusion 1"):
        registry.by_configs([SD1._replace(is_of=lambda configs: False)], {})


def test_a_family_of_two_text_encoders_has_no_single_file(folder):
    with pytest.raises(CheckpointError, match="Two texts has no single file: the original code has one text encoder"):
        convert.folder_to_file(folder, folder / "model.safetensors", CLIP)
