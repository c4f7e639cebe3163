"""VAEs from files and folders of their own."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdjax
from sdjax.checkpoints.tensors import load_params, write_params
from sdjax.checkpoints.vae_file import find_vae
from sdjax.families.networks import AUTOENCODER_KL
from tests.golden import checkpoints

START = "first_stage_model."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sdjax.Model:
    """A toy whose single file lies where its name says, and in `file`."""
    return sdjax.load(checkpoints.write_toy(tmp_path_factory.mktemp("model") / "toy.safetensors", "sd1"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_toy(tmp_path_factory.mktemp("other") / "other.safetensors", "sd1_inpaint")


@pytest.fixture(scope="module")
def other(file: Path) -> sdjax.Model:
    """A model with another VAE."""
    return sdjax.load(file)


def prefixed(file: Path, model: sdjax.Model, to: Path) -> Path:
    save_file({name: value for name, value in load_file(file).items() if name.startswith(START)}, to)
    return to


def bare(file: Path, model: sdjax.Model, to: Path) -> Path:
    """As VAEs are published: with what training left behind."""
    left = {"loss.logvar": np.zeros(1, np.float32), "model_ema.decay": np.zeros(1, np.float32)}
    left |= {"model_ema.encoderconv_inweight": np.zeros(1, np.float32)}
    own = {name.removeprefix(START): value for name, value in load_file(file).items() if name.startswith(START)}
    save_file(own | left, to)
    return to


def whole_checkpoint(file: Path, model: sdjax.Model, to: Path) -> Path:
    return file


def of_diffusers(file: Path, model: sdjax.Model, to: Path) -> Path:
    write_params(model.params["vae"], AUTOENCODER_KL.table, to, np.float32)
    return to


def folder(file: Path, model: sdjax.Model, to: Path) -> Path:
    checkpoints.write_configs_of(to.parent / "whole", model)
    of_diffusers(file, model, to.parent / "whole" / "vae" / "diffusion_pytorch_model.safetensors")
    return to.parent / "whole" / "vae"


def whole_folder(file: Path, model: sdjax.Model, to: Path) -> Path:
    return folder(file, model, to).parent


def file_in_a_folder(file: Path, model: sdjax.Model, to: Path) -> Path:
    return folder(file, model, to) / "diffusion_pytorch_model.safetensors"


FORMS = [prefixed, bare, whole_checkpoint, of_diffusers, folder, whole_folder, file_in_a_folder]


@pytest.mark.parametrize("form", FORMS)
def test_a_vae_of_any_form_is_read(
    form: Callable[[Path, sdjax.Model, Path], Path], file: Path, other: sdjax.Model, tmp_path: Path
) -> None:
    found = find_vae(form(file, other, tmp_path / "vae.safetensors"))
    assert dataclasses.replace(found.beside(0.18215), sample_size=other.vae.config.sample_size) == other.vae.config
    params = load_params(found.chosen, AUTOENCODER_KL.param_shapes(found.config), np.float32)
    jax.tree.map(np.testing.assert_array_equal, params, other.params["vae"])


def test_it_takes_the_place_of_the_models_own(
    model: sdjax.Model, file: Path, other: sdjax.Model, tmp_path: Path
) -> None:
    swapped = sdjax.load(checkpoints.write_toy(tmp_path / "toy.safetensors", "sd1"), vae=file)
    jax.tree.map(np.testing.assert_array_equal, swapped.params["vae"], other.params["vae"])
    jax.tree.map(np.testing.assert_array_equal, swapped.params["unet"], model.params["unet"])
    assert swapped.digest != model.digest and swapped.file_digest == model.file_digest


def test_a_checkpoint_without_a_vae_loads_with_one(model: sdjax.Model, file: Path, tmp_path: Path) -> None:
    toy = checkpoints.write_toy(tmp_path / "toy.safetensors", "sd1")
    save_file({name: value for name, value in load_file(toy).items() if not name.startswith(START)}, toy)
    with pytest.raises(sdjax.CheckpointError, match="holds no VAE"):
        sdjax.load(toy)
    assert sdjax.load(toy, vae=file, weights=False).vae.config == model.vae.config


def test_a_folder_takes_another_vae(sd1_folder: Path, sd2_folder: Path, sd1: sdjax.Model, sd2: sdjax.Model) -> None:
    swapped = sdjax.load(sd1_folder, vae=sd2_folder)
    jax.tree.map(np.testing.assert_array_equal, swapped.params["vae"], sd2.params["vae"])
    assert swapped.digest not in (sd1.digest, sd2.digest)
    assert sdjax.load(sd1_folder, vae=sd2_folder / "vae").digest == swapped.digest


def test_another_vae_has_the_models_variant_or_the_plain_files(
    sd1_folder: Path, sd2_folder: Path, sd2: sdjax.Model, file: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(sd1_folder, tmp_path / "model"))
    for weights in root.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    plain = Path(shutil.copytree(sd2_folder / "vae", tmp_path / "vae"))
    swapped = sdjax.load(root, variant="fp16", vae=plain)
    jax.tree.map(np.testing.assert_array_equal, swapped.params["vae"], sd2.params["vae"])
    (plain / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"damaged")
    with pytest.raises(sdjax.CheckpointError, match=r"fp16\.safetensors can't be read"):
        sdjax.load(root, variant="fp16", vae=plain)
    with pytest.raises(sdjax.CheckpointError, match=r"fp16\.safetensors can't be read"):
        sdjax.load(file, variant="fp16", vae=plain)


def test_a_vae_of_another_kind_of_model_is_refused(sd1_folder: Path, sd2_folder: Path, tmp_path: Path) -> None:
    vae = Path(shutil.copytree(sd2_folder / "vae", tmp_path / "vae"))
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    with pytest.raises(sdjax.CheckpointError, match=r"scaling_factor is 0\.13025, but the UNet .* 0\.18215"):
        sdjax.load(sd1_folder, vae=vae)


def test_a_file_of_something_else_is_named(sd1_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(sdjax.CheckpointError, match="holds no VAE: it is a UNet"):
        sdjax.load(sd1_folder, vae=sd1_folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(sdjax.CheckpointError, match="no model"):
        sdjax.load(sd1_folder, vae=tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    ("dtype", "asked", "given"),
    [
        ("bfloat16", None, "bfloat16"),
        ("float16", None, "float32"),  # it overflows, as its config says
        ("float16", "float16", "float16"),
        ("bfloat16", "float16", "float16"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_the_vaes_dtype_can_be_said(
    dtype: str, asked: str | None, given: str, sd1_folder: Path, sd1: sdjax.Model
) -> None:
    model = sdjax.load(sd1_folder, dtype=dtype, vae_dtype=asked)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params["vae"])} == {model.vae_dtype} == {given}
    assert model.digest == sd1.digest
