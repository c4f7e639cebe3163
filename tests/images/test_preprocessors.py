"""Preprocessors against OpenCV's recorded results, and by what they do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdjax.images.preprocessors import PREPROCESSORS, canny, colour_grid, invert, lines, none, tile
from tests.golden import preprocess_reference as golden

RECORDED = dict(np.load(golden.FILE))
IMAGES = golden.images()
EVERY_IMAGE = pytest.mark.parametrize("name", IMAGES)


def recorded(kind):
    return [key.split(" ", 1)[1] for key in RECORDED if key.startswith(f"{kind} ")]


@pytest.mark.parametrize("low, high", golden.THRESHOLDS)
@EVERY_IMAGE
def test_canny_is_opencvs_to_the_bit(name, low, high):
    edges = canny(IMAGES[name], low, high)
    np.testing.assert_array_equal(np.packbits(edges[..., 0] > 0), RECORDED[f"canny {name} {low} {high}"])
    assert set(np.unique(edges)) <= {0, 255} and (edges == edges[..., :1]).all()


def test_a_weak_edge_is_drawn_as_far_as_it_goes_on_from_a_strong_one():
    image = np.full((40, 600, 3), 120, np.uint8)
    image[20:] = 90
    assert canny(image, 50, 130).max() == 0
    image[20:, :3] = 60
    assert (canny(image, 50, 130) > 0).any((0, 2)).all()


@pytest.mark.parametrize("name", recorded("lines"))
def test_lines_are_sd_webui_controlnets(name):
    drawn = lines(IMAGES[name])[..., 0]
    assert np.abs(drawn.astype(int) - RECORDED[f"lines {name}"]).max() <= 1


@pytest.mark.parametrize("case", recorded("grid"))
def test_the_grid_of_colours_is_opencvs(case):
    name, cell = case.rsplit(" ", 1)
    grid = colour_grid(IMAGES[name], int(cell))
    assert np.abs(grid.astype(int) - RECORDED[f"grid {case}"]).max() <= 1


def test_a_tile_is_made_smaller_by_the_mean():
    blocks = IMAGES["blocks"]
    small = np.asarray(Image.fromarray(blocks).resize((44, 36), Image.Resampling.BOX))
    np.testing.assert_array_equal(small, RECORDED["smaller blocks"])
    wanted = Image.fromarray(small).resize((88, 72), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(tile(blocks, 2), np.asarray(wanted))
    np.testing.assert_array_equal(tile(blocks), blocks)


@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from(sorted(PREPROCESSORS)))
@settings(max_examples=60, deadline=None)
def test_every_one_takes_images_of_any_size_and_leaves_them_as_they_are(height, width, name):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = pixels.copy()
    shown = PREPROCESSORS[name](pixels)
    assert shown.shape == pixels.shape and shown.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(PREPROCESSORS[name](np.asfortranarray(pixels)), shown)


@EVERY_IMAGE
def test_what_is_inverted_twice_or_not_touched_is_the_image(name):
    np.testing.assert_array_equal(invert(invert(IMAGES[name])), IMAGES[name])
    np.testing.assert_array_equal(none(IMAGES[name]), IMAGES[name])


@pytest.mark.parametrize("name", ["canny", "lines"])
def test_an_image_of_one_colour_has_neither_edges_nor_lines(name):
    assert PREPROCESSORS[name](IMAGES["flat"]).max() == 0


@pytest.mark.parametrize(
    "function, options",
    [
        (canny, {"low": -1}),
        (canny, {"high": float("nan")}),
        (canny, {"high": float("inf")}),
        (lines, {"sigma": 0}),
        (tile, {"factor": 0.5}),
        (tile, {"factor": 1e9}),
        (colour_grid, {"cell": 0}),
    ],
)
def test_impossible_options_are_errors(function, options):
    with pytest.raises(ValueError, match="expected"):
        function(IMAGES["flat"], **options)
