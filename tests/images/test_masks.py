"""What inpainting makes of masks. tests/parity compares with torch and diffusers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdjax.images.decode import ImageError
from sdjax.images.masks import blurred, crop_region, fitted_to, gaussian, inverted, latent_mask, pasted
from tests.golden import preprocess_reference as golden

SIDE = st.integers(1, 40)
SHARE = st.floats(0, 1, width=32)
RECORDED = dict(np.load(golden.FILE))


def random_mask(seed, height, width):
    return np.random.default_rng(seed).random((height, width), np.float32)


# --- Blur ---


@pytest.mark.parametrize("radius", golden.RADII)
@pytest.mark.parametrize("name", golden.masks())
def test_the_blur_is_opencvs_and_a1111s_within_its_8_bits(name, radius):
    given_mask = blurred(golden.masks()[name].astype(np.float32) / 255, radius)
    np.testing.assert_allclose(given_mask[::3, ::3], RECORDED[f"soft {name} {radius}"], rtol=0, atol=1e-6)
    # A1111 rounds twice.
    assert np.abs(given_mask * 255 - RECORDED[f"blur {name} {radius}"]).max() <= 2


@given(st.integers(0, 99), SIDE, SIDE, st.floats(0, 30))
@settings(max_examples=60, deadline=None)
def test_a_blurred_mask_is_a_mask(seed, height, width, radius):
    mask = random_mask(seed, height, width)
    soft = blurred(mask, radius)
    assert soft.shape == mask.shape and soft.dtype == np.float32
    assert mask.min() - 1e-6 <= soft.min() and soft.max() <= min(1, mask.max() + 1e-6)


@pytest.mark.parametrize("place", [(0, 0), (30, 40), (59, 3)])
def test_the_blur_of_a_small_part_is_that_of_the_whole_to_the_bit(place):
    mask = np.zeros((60, 80), np.float32)
    mask[place[0] : place[0] + 3, place[1] : place[1] + 2] = 0.7
    np.testing.assert_array_equal(blurred(mask, 3.0), np.clip(gaussian(mask, 3.0, 8), 0, 1))


def test_no_blur_leaves_the_mask_as_it_is():
    mask = random_mask(0, 5, 6)
    np.testing.assert_array_equal(blurred(mask, 0), mask)


def test_a_blur_of_a_constant_is_that_constant_in_every_channel():
    flat = np.full((9, 4, 3), 200, np.float32)
    np.testing.assert_allclose(gaussian(flat, 6, 24), flat, rtol=1e-6)


def test_a_blur_of_both_axes_is_the_same_when_the_mask_is_turned():
    mask = random_mask(1, 20, 31)
    np.testing.assert_allclose(blurred(mask.T, 3).T, blurred(mask, 3), atol=1e-6)


def test_a_narrow_line_becomes_a_gaussian():
    mask = np.zeros((1, 101), np.float32)
    mask[0, 50] = 1
    soft = blurred(mask, 4)[0].astype(float)
    wanted = np.exp(-0.5 * ((np.arange(101) - 50) / 4) ** 2) * (np.abs(np.arange(101) - 50) <= 10)
    np.testing.assert_allclose(soft, wanted / wanted.sum(), atol=1e-7)


@given(arrays(np.float32, (3, 4), elements=SHARE))
def test_an_inverted_mask_is_the_rest(mask):
    np.testing.assert_array_equal(inverted(mask) + mask, np.float32(1))


# --- To the latents ---


def test_a_latent_takes_the_value_of_its_first_pixel():
    mask = random_mask(2, 64, 48)
    np.testing.assert_array_equal(latent_mask(mask, 8, 6), mask[::8, ::8])


@given(SIDE, SIDE, SIDE, SIDE)
def test_a_mask_of_nothing_or_everything_stays_one(height, width, rows, columns):
    for value in (0, 1):
        small = latent_mask(np.full((height, width), value, np.float32), rows, columns)
        assert small.shape == (rows, columns) and (small == value).all()


# --- The part around the mask ---


@given(st.data())
def test_the_region_holds_the_mask_and_its_padding_and_lies_in_the_image(data):
    height, width = data.draw(SIDE), data.draw(SIDE)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    padding = data.draw(st.integers(0, 20))
    mask = np.zeros((height, width), np.float32)
    mask[top:bottom, left:right] = 1
    size = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 64))
    region = crop_region(mask, padding, size)
    assert 0 <= region[0] <= max(0, top - padding) and 0 <= region[1] <= max(0, left - padding)
    assert min(height, bottom + padding) <= region[2] <= height
    assert min(width, right + padding) <= region[3] <= width


def test_the_region_has_the_proportions_of_the_image_where_there_is_room():
    mask = np.zeros((512, 512), np.float32)
    mask[100:132, 200:328] = 1
    assert crop_region(mask, 0, (512, 512)) == (52, 200, 180, 328)
    assert crop_region(mask, 16, (512, 512)) == (36, 184, 196, 344)
    mask[0, 0] = 0.001  # less than any step of 8 bits
    assert crop_region(mask, 0, (512, 512)) == (52, 200, 180, 328)


def test_a_region_at_the_border_is_moved_and_not_cut():
    mask = np.zeros((100, 200), np.float32)
    mask[95:, 150:] = 1
    assert crop_region(mask, 0, (64, 64)) == (50, 150, 100, 200)


def test_an_empty_mask_has_no_region():
    with pytest.raises(ImageError, match="nothing is masked"):
        crop_region(np.zeros((5, 5), np.float32), 3, (8, 8))


# --- Back into the image ---


@given(st.integers(0, 2**32 - 1), SIDE, SIDE)
@settings(max_examples=60, deadline=None)
def test_where_the_mask_is_0_the_original_is_untouched_and_where_it_is_1_all_is_drawn(seed, height, width):
    random = np.random.default_rng(seed)
    original, drawn = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    mask = random.choice(np.array([0, 1, 0.5, 0.37], np.float32), (height, width))
    whole = pasted(original, drawn, mask)
    np.testing.assert_array_equal(whole[mask == 0], original[mask == 0])
    np.testing.assert_array_equal(whole[mask == 1], drawn[mask == 1])
    low, high = np.minimum(original, drawn), np.maximum(original, drawn)
    assert (low <= whole).all() and (whole <= high).all()
    np.testing.assert_array_equal(pasted(original, original, mask), original)


# --- Masks of other sizes ---


def test_a_mask_of_its_images_size_is_taken_as_it_is():
    mask = random_mask(3, 30, 40)
    np.testing.assert_array_equal(fitted_to(mask, 30, 40), mask)


@pytest.mark.parametrize(
    "mask, image",
    [
        ((64, 64), (512, 512)),
        ((1024, 1024), (512, 511)),
        ((341, 512), (683, 1024)),
        ((100, 133), (600, 800)),
        ((64, 64), (512, 508)),
        ((512, 1), (8, 1)),
    ],
)
def test_a_mask_of_the_same_proportions_is_brought_to_the_images_size(mask, image):
    resized = fitted_to(random_mask(4, *mask), *image)
    assert resized.shape == image and resized.min() >= 0 and resized.max() <= 1


@pytest.mark.parametrize("mask, image", [((64, 64), (512, 500)), ((40, 30), (30, 40)), ((500, 512), (512, 512))])
def test_a_mask_of_other_proportions_is_an_error_that_names_both_sizes(mask, image):
    sizes = f"wrong size for the mask: {mask[1]}x{mask[0]}; the image has {image[1]}x{image[0]}"
    with pytest.raises(ImageError, match=sizes):
        fitted_to(np.ones(mask, np.float32), *image)
