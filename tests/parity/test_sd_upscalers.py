"""Stable Diffusion's upscalers against diffusers."""

from pathlib import Path

import numpy as np
import pytest

from sdjax.checkpoints import name_table, original_names
from sdjax.families.networks import UNET_2D_CONDITION_MODEL
from sdjax.models import UNetConfig
from tests import toys
from tests.golden import images, sd_upscalers
from tests.golden.networks import TOLERANCE, relative_error

pytestmark = pytest.mark.parity

reference = pytest.importorskip("tests.golden.sd_upscaler_reference", reason="needs torch", exc_type=ImportError)


@pytest.mark.parametrize("name", sd_upscalers.TOYS)
def test_networks_are_those_of_diffusers(name: str) -> None:
    error = relative_error(sd_upscalers.prediction(name), reference.prediction(name))
    print(f"\n{name}: {error:.2e}")
    assert error < TOLERANCE


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# Guided ones are compared with recordings in every run.
@pytest.mark.parametrize(("name", "title"), [("x4", "without guidance"), ("x2", "without prompt")])
def test_images_are_those_of_diffusers(name: str, title: str, tmp_path: Path) -> None:
    toy = sd_upscalers.TOYS[name]
    folder = sd_upscalers.write(tmp_path, toy)
    upscaler = sd_upscalers.load(folder)
    case = sd_upscalers.CASES[name][title]
    found, expected = sd_upscalers.upscaled(upscaler, case), reference.upscaled(folder, toy, case)
    with np.load(sd_upscalers.RECORDED) as stored:
        recorded = stored[f"{name}/{title}"]
    if name == "x4":
        share = images.share_that_differs(found, expected)
        print(f"\n{title}: {share:.4%} differ by more than 1; {np.mean(found != expected):.4%} differ")
        assert share <= images.TOLERATED_SHARE
        assert images.share_that_differs(recorded, expected) <= images.TOLERATED_SHARE
    else:
        error = largest_error(found, expected)
        print(f"\n{title}: {error:.2e}")
        assert error < sd_upscalers.LATENT_TOLERANCE
        assert largest_error(recorded, expected) < sd_upscalers.LATENT_TOLERANCE


def test_original_names_of_the_x4_upscaler_are_those_of_diffusers() -> None:
    config = sd_upscalers.X4_TOY.unet
    assert isinstance(config, UNetConfig)
    numbered = {
        source: np.full(source.shape, place) for place, source in enumerate(original_names.unet_sources(config))
    }
    renamed = reference.converted({source.name: array for source, array in numbered.items()}, config)
    table = UNET_2D_CONDITION_MODEL.table
    found = {name_table.file_names(source.path, table)[0]: array.ravel()[0] for source, array in numbered.items()}
    # diffusers leaves out the class embedding there.
    assert {name: place for name, place in found.items() if name in renamed} == {
        name: array.ravel()[0] for name, array in renamed.items()
    }
    assert found.keys() - renamed.keys() <= {"class_embedding.weight"}
    assert len(found) == len(numbered)
    assert toys.param_shapes(config)
