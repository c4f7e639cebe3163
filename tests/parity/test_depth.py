"""Live comparison of depth estimators with transformers, and of their maps with diffusers' pipeline."""

from pathlib import Path

import numpy as np
import pytest

from sdjax.library.depth import load_depth
from tests.golden import depth
from tests.golden.networks import TOLERANCE, relative_error

pytestmark = pytest.mark.parity

reference = pytest.importorskip("tests.golden.depth_reference", reason="needs torch: make parity", exc_type=ImportError)


@pytest.mark.parametrize("name", depth.CASES)
def test_depth_is_what_transformers_and_diffusers_give(name: str) -> None:
    case = depth.CASES[name]
    sizes = case.sizes + case.more
    wanted, found = reference.outputs(name, sizes), depth.outputs(name, sizes)
    assert wanted.keys() == found.keys()
    errors = {key: relative_error(array, wanted[key]) for key, array in found.items()}
    print(f"\n{name}: " + ", ".join(f"{key} {error:.1e}" for key, error in errors.items()))
    assert max(errors.values()) < TOLERANCE
    with np.load(depth.RECORDED) as recorded:
        for key in recorded:
            if key.startswith(f"{name}/"):
                assert relative_error(wanted[key.removeprefix(f"{name}/")], recorded[key]) < TOLERANCE


@pytest.mark.parametrize("name", depth.PROCESSORS)
def test_an_image_is_processed_to_the_bit(name: str) -> None:
    wanted = reference.seen(name)
    for key, array in depth.seen(name).items():
        np.testing.assert_array_equal(array, wanted[key])


@pytest.mark.parametrize("name", ["hybrid", "plain_with_batch_norm"])
def test_what_transformers_saves_loads(name: str, tmp_path: Path) -> None:
    case = depth.CASES[name]
    reference.network(case).save_pretrained(tmp_path)
    reference.transformers.DPTImageProcessorPil().save_pretrained(tmp_path)
    model = load_depth(tmp_path)
    for key, array in depth.state(depth.params_of(case)).items():
        np.testing.assert_array_equal(depth.state(model.params)[key], array)
    assert model.config.backbone_config == case.config.backbone_config


@pytest.mark.parametrize("name", depth.PUBLISHED)
def test_recorded_names_and_shapes_are_those_of_now(name: str) -> None:
    assert {key: tuple(shape) for key, shape in reference.full_size(name).items()} == depth.shapes(name)
