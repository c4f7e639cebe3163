"""What comes with the embedded model besides it: a ControlNet and an estimator of depth."""

import tomllib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import sdjax
from sdjax.assets import bundled
from sdjax.checkpoints.controlnet_file import find_controlnet
from sdjax.library.depth import depth_of, load_depth, sized
from sdjax.training import control, depth

ROOT = Path(__file__).parent.parent
FOLDERS = [path for path in (bundled("emoji", "controlnets"), bundled("emoji", "depth_estimator")) if path]


def files() -> list[Path]:
    return [path for folder in FOLDERS for path in folder.rglob("*") if path.is_file()]


def test_the_controlnet_is_what_training_makes_and_fits_the_model():
    emoji = sdjax.load("emoji", weights=False)
    found = find_controlnet(FOLDERS[0] / "canny")
    found.config.check_fits(emoji.unet.config)
    made = control.config(emoji)
    assert (found.config.factor, found.config.residual_channels) == (made.factor, made.residual_channels)


def test_the_estimator_sees_an_apple_stand_out_of_its_background():
    model = load_depth("emoji")
    assert (model.config, model.processor) == (depth.ESTIMATOR, depth.PROCESSOR)
    apple = np.asarray(PIL.Image.open(ROOT / "tests" / "golden" / "apple.png").convert("RGB"))
    near = sized(depth_of(model, apple), 64, 64)
    corners = near[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert near[28:36, 28:36].min() > corners.max() + 0.4


def test_they_are_small_and_packed():
    assert len(files()) == 5 and sum(path.stat().st_size for path in files()) <= 15_000_000
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["*"]
    assert all(any(path.match(pattern) for pattern in patterns) for path in files())


def silhouette(pixels: np.ndarray) -> np.ndarray:
    """Where an image differs from its corner."""
    return np.abs(pixels.astype(int) - pixels[0, 0]).sum(axis=-1) > 90


@pytest.mark.slow
def test_images_have_the_shape_that_the_controlnet_is_shown():
    file = ROOT / "tests" / "golden" / "apple.png"
    shape = silhouette(np.asarray(PIL.Image.open(file).convert("RGB")))
    asked = {"prompt": "on a blue background", "steps": 20, "guidance_scale": 3.0}
    shown = {"controlnets": "canny:1.2", "control_image": str(file), "control_preprocessor": "canny"}
    jobs = [sdjax.Job(seed=seed, **asked, **more) for more in ({}, shown) for seed in range(4)]
    results = sdjax.generate(sdjax.load("emoji"), jobs, library=sdjax.Library(controlnets="emoji"))
    shares = [(shape & found).sum() / (shape | found).sum() for found in (silhouette(each.image) for each in results)]
    assert min(shares[4:]) > 0.8 > max(shares[:4]), shares
