"""Whole images against recordings of diffusers' pipeline, from the same torch seed."""

from pathlib import Path

import numpy as np
import pytest

import sdjax
from tests import toys
from tests.golden import images, variants


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_images_of_toys_are_those_of_the_reference(name: str, request: pytest.FixtureRequest) -> None:
    check(request.getfixturevalue(name), name, all_steps=name == "sd1")


@pytest.mark.parametrize("all_steps", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_images_of_the_embedded_model_are_those_of_the_reference(all_steps: bool) -> None:
    model = sdjax.load("emoji")
    with np.load(images.recorded_file("emoji")) as stored:
        assert str(stored["digest"]) == model.digest, "the model is another than was recorded: make golden"
    check(model, "emoji", all_steps)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "sd2_depth" else ()) for name in variants.QUICK]
)
def test_images_of_models_that_are_told_more_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    toy, cases = variants.VARIANTS[name]
    drawn = images.drawn(sdjax.load(toys.write_toy(tmp_path, toy)), cases)
    with np.load(variants.RECORDED) as stored:
        shares = {case: images.share_that_differs(drawn[case], stored[f"{name}/{case}"]) for case in cases}
    assert max(shares.values()) <= images.TOLERATED_SHARE


def check(model: sdjax.Model, name: str, all_steps: bool) -> None:
    """Every recorded image, or without those of 20 steps, which take longest; all are compared live."""
    file: Path = images.recorded_file(name)
    cases = {case: each for case, each in images.RECORDED[name].items() if all_steps or not case.endswith("-20")}
    drawn = images.drawn(model, cases)
    with np.load(file) as stored:
        shares = {case: images.share_that_differs(image, stored[case]) for case, image in drawn.items()}
    assert {case: share for case, share in shares.items() if share > images.TOLERATED_SHARE} == {}
