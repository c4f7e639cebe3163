"""Stable Diffusion's upscalers: images against recordings of diffusers, batches, files and errors."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sdjax.checkpoints import name_table, original_names
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.diffusion.scheduler_config import training_sigmas
from sdjax.jobs.job import JobError
from sdjax.library.upscalers import read_diffusion_upscaler
from sdjax.model import Model
from sdjax.models import ConfigError, UNetConfig
from tests.golden import sd_upscalers
from tests.golden.images import TOLERATED_SHARE, share_that_differs


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("upscalers")
    return {name: sd_upscalers.write(root / name, toy) for name, toy in sd_upscalers.TOYS.items()}


@pytest.fixture(scope="module")
def upscalers(folders: dict[str, Path]) -> dict[str, Model]:
    return {name: sd_upscalers.load(folder) for name, folder in folders.items()}


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(sd_upscalers.RECORDED) as stored:
        return dict(stored)


# The other cases are compared live.
def test_images_of_the_x4_upscaler_are_those_of_diffusers(upscalers: dict[str, Model]) -> None:
    case = "very noisy"
    found = sd_upscalers.upscaled(upscalers["x4"], sd_upscalers.CASES["x4"][case])
    assert share_that_differs(found, recorded()[f"x4/{case}"]) <= TOLERATED_SHARE


def test_latents_of_the_x2_upscaler_are_those_of_diffusers(upscalers: dict[str, Model]) -> None:
    case = "guided"
    found, reference = sd_upscalers.upscaled(upscalers["x2"], sd_upscalers.CASES["x2"][case]), recorded()[f"x2/{case}"]
    assert found.shape == reference.shape
    assert np.abs(found - reference).max() / np.abs(reference).max() < sd_upscalers.LATENT_TOLERANCE


def upscaled_on(cores: set[int], folder: Path) -> list[str]:
    """Digests of what the upscalers in a folder give in a process of so many cores, on which threads depend."""
    lines = f"""
        import os; os.sched_setaffinity(0, {cores})
        import hashlib
        from pathlib import Path
        from tests.golden import sd_upscalers
        for name in ("x4", "x2"):
            upscaler = sd_upscalers.load(Path({str(folder)!r}) / name)
            found = sd_upscalers.upscaled(upscaler, sd_upscalers.Case(2, 9.0, 20), (0,), noise_source="threefry")
            print(hashlib.sha256(found.tobytes()).hexdigest())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(lines)],
        env={**os.environ, "XLA_FLAGS": ""},  # as many devices as tests have would make as many threads
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_bits_do_not_depend_on_the_number_of_cores(folders: dict[str, Path]) -> None:
    cores = os.sched_getaffinity(0)
    one, all_ = (upscaled_on(each, folders["x4"].parent) for each in ({min(cores)}, cores))
    assert len(one) == 2 and one == all_


@pytest.mark.parametrize("name", ["x4", pytest.param("x2", marks=pytest.mark.slow)])
def test_bits_do_not_depend_on_neighbours_place_and_devices(upscalers: dict[str, Model], name: str) -> None:
    case = sd_upscalers.Case(2, 1.0, 200)

    def made(*places: int, devices: int = 1) -> np.ndarray:
        return sd_upscalers.upscaled(upscalers[name], case, places, devices, noise_source="threefry")

    whole = made(0, 1, 2)
    assert not np.array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(made(2, 0), whole[[2, 0]])
    np.testing.assert_array_equal(made(1), whole[[1]])
    np.testing.assert_array_equal(made(0, 1, 2, devices=4), whole)


# --- Loading ---


def original_file(folder: Path) -> Path:
    """The x4 toy in one file, under original names, with the buffers that such files have."""
    toy = sd_upscalers.X4_TOY
    params = toy.params()
    tensors: dict[str, Any] = {"low_scale_model.betas": np.ones(1000, np.float32)}
    for part, config in toy.configs.items():
        leaves = {tuple(key.key for key in keys): leaf for keys, leaf in jax.tree.leaves_with_path(params[part])}
        fused: dict[str, list[np.ndarray]] = {}
        for source in sorted(original_names.sources(config), key=lambda source: source.rows or (0, 0)):
            array = name_table.to_file(source.path, leaves[source.path])
            if source.rows:
                fused.setdefault(source.name, []).append(array)
            else:
                tensors[source.name] = array.reshape(source.shape)
        tensors |= {name: np.concatenate(rows) for name, rows in fused.items()}
    # The last of OpenCLIP's layers is not used.
    tensors |= {
        name.replace("resblocks.0.", "resblocks.2."): np.zeros_like(array)
        for name, array in tensors.items()
        if "resblocks.0." in name
    }
    save_file(tensors, folder / "x4-upscaler-ema.safetensors")
    return folder / "x4-upscaler-ema.safetensors"


def test_an_original_file_is_the_same_upscaler(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, file = (read_diffusion_upscaler(path, np.float32) for path in (folders["x4"], original_file(tmp_path)))
    unet, vae = file.configs["unet"], file.configs["vae"]
    assert isinstance(unet, UNetConfig)
    # At the first level there is no attention; and for what size it was trained the file does not say.
    assert unet.only_cross_attention == (False, True, True, False)
    said: dict[str, Any] = {"sample_size": 8, "only_cross_attention": sd_upscalers.X4_TOY.unet.only_cross_attention}
    assert dataclasses.replace(unet, **said) == folder.configs["unet"]
    assert dataclasses.replace(vae, sample_size=folder.configs["vae"].sample_size) == folder.configs["vae"]
    assert (file.configs["text_encoder"], file.scheduler) == (folder.configs["text_encoder"], folder.scheduler)
    assert file.low_res is not None
    assert folder.low_res is not None
    np.testing.assert_array_equal(training_sigmas(file.low_res), training_sigmas(folder.low_res))
    assert (file.sampler, file.max_noise_level) == (folder.sampler, folder.max_noise_level)
    jax.tree.map(np.testing.assert_array_equal, file.params, folder.params)


def test_an_original_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = original_file(tmp_path)
    tensors = load_file(file)
    save_file({**tensors, "surprise": np.zeros(1, np.float32)}, file)
    with pytest.raises(CheckpointError, match="left over: surprise"):
        read_diffusion_upscaler(file, np.float32)
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = np.zeros((32, 4, 3, 3), np.float32)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="in_channels is 4, expected 7"):
        read_diffusion_upscaler(file, np.float32)


def changed(folder: Path, file: str, **changes: Any) -> None:
    data = json.loads((folder / file).read_text())
    data = {key: value for key, value in {**data, **changes}.items() if value != "gone"}
    (folder / file).write_text(json.dumps(data))


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("name", "file", "changes", "said"),
    [
        ("x4", "model_index.json", {"_class_name": "StableDiffusionPipeline"}, "is no upscaler"),
        ("x4", "model_index.json", {"prior": ["diffusers", "Prior"]}, "unknown parts prior"),
        ("x2", "model_index.json", {"low_res_scheduler": ["diffusers", "X"]}, "unknown parts low_res_scheduler"),
        ("x4", "model_index.json", {"max_noise_level": 1000}, "max_noise_level = 1000: expected a number from 0"),
        ("x4", "unet/config.json", {"in_channels": 8}, "in_channels is 8, expected 7"),
        ("x4", "unet/config.json", {"num_class_embeds": None}, "num_class_embeds is False"),
        ("x2", "unet/config.json", {"out_channels": 4}, "out_channels is 4, expected 5"),
        ("x2", "unet/config.json", {"time_cond_proj_dim": 32}, "time_cond_proj_dim is 32, expected 160"),
        ("x2", "unet/config.json", {"cross_attention_dim": 64}, "cross_attention_dim is 64, expected 32"),
        ("x4", SCHEDULER, {"clip_sample": "gone"}, "clip_sample is not false"),
        ("x4", SCHEDULER, {"_class_name": "DDPMScheduler"}, "adds noise on the way"),
        ("x4", SCHEDULER, {"_class_name": "NoScheduler"}, "none of the samplers"),
        ("x2", "unet/config.json", {"layers_per_block": 1}, "left over"),
    ],
)
def test_what_is_no_upscaler_is_refused(
    tmp_path: Path, name: str, file: str, changes: dict[str, Any], said: str, folders: dict[str, Path]
) -> None:
    for path in folders[name].rglob("*"):
        if path.is_file():
            link = tmp_path / path.relative_to(folders[name])
            link.parent.mkdir(parents=True, exist_ok=True)
            link.write_bytes(path.read_bytes())
    changed(tmp_path, file, **changes)
    with pytest.raises((CheckpointError, ConfigError), match=said):
        sd_upscalers.load(tmp_path)


# --- What can't be done ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"upscaler_noise_level": 351}, "noise_level = 351: expected a number from 0 to 350"),
        ({"upscaler_steps": 1000}, "steps = 1000"),
        ({"prompts": ("a cat " * 80, "", ""), "prompt_syntax": "plain"}, "does not fit"),
        ({"prompts": ("a cat AND a dog :2", "", ""), "upscaler_guidance_scale": 1.0}, "weighted parts"),
    ],
)
def test_the_x4_upscaler_refuses(upscalers: dict[str, Model], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said):
        sd_upscalers.upscaled(upscalers["x4"], sd_upscalers.Case(2, 9.0, 20), (0,), **changes)


def test_the_x2_upscaler_refuses_prompts_that_do_not_fit(upscalers: dict[str, Model]) -> None:
    with pytest.raises(JobError, match="does not fit"):
        sd_upscalers.upscaled(upscalers["x2"], sd_upscalers.Case(2, 9.0, 20), (0,), prompts=("a cat " * 80,))
