"""Images brought to another size. tests/parity compares with diffusers, from which sizes and places come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdjax.images.fit import RESIZE_MODES, fitted, fitted_grey, fitted_mask, snapped

SIDE = st.integers(1, 70)
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8)


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(RESIZE_MODES))
@settings(max_examples=150, deadline=None)
def test_every_size_and_shape_fits_without_a_gap(height, width, wanted_height, wanted_width, mode):
    pixels = np.full((height, width, 3), 200, np.uint8)
    given_pixels = fitted(pixels, wanted_height, wanted_width, mode)
    np.testing.assert_array_equal(given_pixels, np.full((wanted_height, wanted_width, 3), 200))
    values = np.full((height, width), 0.7, np.float32)
    np.testing.assert_array_equal(fitted_grey(values, wanted_height, wanted_width, mode), np.float32(0.7))
    mask = fitted_mask(np.ones((height, width), np.float32), wanted_height, wanted_width, mode)
    assert mask.shape == (wanted_height, wanted_width) and (mask == 1).all()


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_the_right_size_changes_nothing(mode):
    np.testing.assert_array_equal(fitted(PIXELS, 40, 60, mode), PIXELS)
    values = PIXELS[..., 0] / np.float32(255)
    np.testing.assert_array_equal(fitted_grey(values, 40, 60, mode), values)
    np.testing.assert_array_equal(fitted_mask(values, 40, 60, mode), values)


def test_stretching_is_lanczos():
    wanted = Image.fromarray(PIXELS).resize((24, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(fitted(PIXELS, 32, 24, "stretch"), np.asarray(wanted))


def test_cropping_takes_the_middle():
    np.testing.assert_array_equal(fitted(PIXELS, 40, 40, "crop"), PIXELS[:, 10:50])
    np.testing.assert_array_equal(fitted(PIXELS.transpose(1, 0, 2), 40, 40, "crop"), PIXELS.transpose(1, 0, 2)[10:50])


def test_padding_keeps_the_whole_image_and_repeats_its_edges():
    padded = fitted(PIXELS, 60, 60, "pad")
    np.testing.assert_array_equal(padded[10:50], PIXELS)
    assert (padded[:10] == padded[0]).all() and (padded[50:] == padded[59]).all()
    # Pillow's cubic at the very edge: 9/8 of the last row less 1/8 of the one before.
    edge = np.clip(1.125 * PIXELS[0] - 0.125 * PIXELS[1].astype(float), 0, 255)
    assert np.abs(padded[0] - edge).max() <= 1


def test_odd_sizes_are_padded_to_the_last_row():
    padded = fitted(PIXELS[:20, :60], 31, 90, "pad")
    assert (padded[-1] == padded[-2]).all() or padded[-1].any()
    assert fitted(np.full((4, 7, 3), 9, np.uint8), 7, 7, "pad").min() == 9


def test_any_layout_in_memory_gives_the_same_bits():
    turned = np.asfortranarray(PIXELS)
    for mode in RESIZE_MODES:
        np.testing.assert_array_equal(fitted(turned, 33, 17, mode), fitted(PIXELS, 33, 17, mode))


@given(st.integers(0, 2**32 - 1), SIDE, SIDE, st.sampled_from(RESIZE_MODES))
@settings(max_examples=50, deadline=None)
def test_maps_stay_within_their_own_values(seed, height, width, mode):
    values = np.random.default_rng(seed).normal(3, 50, (13, 17)).astype(np.float32)
    resized = fitted_grey(values, height, width, mode)
    assert resized.shape == (height, width) and resized.dtype == np.float32
    assert values.min() <= resized.min() and resized.max() <= values.max()


def test_an_unknown_mode_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'zoom': expected one of stretch, crop, pad"):
        fitted(PIXELS, 8, 8, "zoom")


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.sampled_from([1, 8, 64]))
def test_sizes_are_rounded_down_to_multiples_and_never_to_nothing(height, width, multiple):
    for side, given_side in zip((height, width), snapped(height, width, multiple), strict=True):
        assert given_side % multiple == 0 and given_side >= multiple
        assert given_side <= side < given_side + multiple or side < multiple
