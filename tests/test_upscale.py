"""Pictures enlarged a tile at a time."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.checkpoints.upscaler_file import UpscalerNetwork, read_upscaler
from sdjax.models.upscaler import CompactConfig, RRDBNetConfig, UpscalerConfig
from sdjax.upscale import upscaled
from tests.golden import upscalers

# Reach of 4 pixels.
COMPACT = CompactConfig(convolutions=2, features=32, shuffle=2, scale=2)
UNSHUFFLED = RRDBNetConfig(blocks=1, features=32, growth=24, doublings=2, unshuffle=2)


@functools.cache
def upscaler_of(config: UpscalerConfig) -> UpscalerNetwork:
    with tempfile.TemporaryDirectory() as folder:
        return read_upscaler(upscalers.write(Path(folder) / "it.safetensors", config))


def pictures(count: int, height: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, height, width, 3)).astype(np.uint8)


def differences(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.uint8
    return np.abs(found.astype(int) - expected.astype(int))


def whole(config: UpscalerConfig, pixels: np.ndarray) -> np.ndarray:
    """What the network gives for whole pictures, which it takes."""
    values = upscalers.given_by(upscaler_of(config), pixels.astype(np.float32) / 255)
    return np.round(np.clip(values * 255, 0, 255)).astype(np.uint8)


# Of sums that are rounded otherwise, one value in thousands goes to the next of 256.
def check_same(found: np.ndarray, expected: np.ndarray) -> None:
    apart = differences(found, expected)
    assert apart.max() <= 1 and apart.astype(bool).mean() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(20, 33), (16, 45), (9, 41), (40, 3)])
def test_tiles_with_all_that_the_network_reaches_give_the_whole_picture(height: int, width: int) -> None:
    pixels = pictures(1, height, width)
    found = upscaled(upscaler_of(COMPACT), pixels, tile=16, overlap=COMPACT.reach, batch=2)
    assert found.shape == (1, 2 * height, 2 * width, 3)
    check_same(found, whole(COMPACT, pixels))


def test_tiles_with_less_differ_only_where_they_meet() -> None:
    pixels = pictures(1, 8, 40)
    found = upscaled(upscaler_of(COMPACT), pixels, tile=24, overlap=0)
    apart = differences(found, whole(COMPACT, pixels)).max(axis=(0, 1, 3))
    # The second of two tiles begins at 16; the result changes in the middle of what both have, at 20, where it was seen
    # as far as it matters.
    assert apart.max() <= 1
    found = upscaled(upscaler_of(COMPACT), pictures(1, 8, 48), tile=24, overlap=0)
    apart = differences(found, whole(COMPACT, pictures(1, 8, 48))).max(axis=(0, 1, 3))
    assert apart[46:50].max() > 1
    assert apart[: 2 * (24 - COMPACT.reach)].max() <= 1 and apart[2 * (24 + COMPACT.reach) :].max() <= 1


@pytest.mark.parametrize(
    ("config", "height", "width"),
    [(COMPACT, 1, 1), (COMPACT, 1, 7), (COMPACT, 5, 1), (UNSHUFFLED, 1, 1), (UNSHUFFLED, 3, 2)],
)
def test_a_picture_of_any_size_becomes_larger(config: UpscalerConfig, height: int, width: int) -> None:
    found = upscaled(upscaler_of(config), pictures(1, height, width))
    assert found.shape == (1, 2 * height, 2 * width, 3)


def test_a_picture_of_no_whole_number_of_squares_is_continued_by_its_reflection() -> None:
    pixels = pictures(1, 15, 21)
    found = upscaled(upscaler_of(UNSHUFFLED), pixels)
    continued = np.concatenate([pixels, pixels[:, -2:-1]], axis=1)
    continued = np.concatenate([continued, continued[:, :, -2:-1]], axis=2)
    check_same(found, whole(UNSHUFFLED, continued)[:, :30, :42])


def test_tiles_of_unshuffled_pixels_begin_at_whole_squares() -> None:
    pixels = pictures(1, 14, 43)
    found = upscaled(upscaler_of(UNSHUFFLED), pixels, tile=17, overlap=4)
    expected = upscaled(upscaler_of(UNSHUFFLED), pixels)
    # A tile out of step would differ everywhere.
    assert np.median(differences(found, expected)) == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_the_bits_of_a_picture_do_not_depend_on_its_neighbours(batch: int) -> None:
    pixels = pictures(3, 18, 25)
    run = functools.partial(upscaled, upscaler_of(COMPACT), tile=16, overlap=3, batch=batch)
    together = run(pixels)
    for place in range(3):
        np.testing.assert_array_equal(run(pixels[place : place + 1])[0], together[place])
    np.testing.assert_array_equal(run(pixels[::-1])[::-1], together)


def test_numbers_of_16_bits_are_near() -> None:
    given = upscaler_of(COMPACT)
    halved = given._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), given.params))
    apart = differences(upscaled(halved, pictures(1, 16, 16)), upscaled(given, pictures(1, 16, 16)))
    assert apart.max() > 0 and apart.mean() < 3


def test_what_is_not_finite_is_no_picture() -> None:
    given = upscaler_of(COMPACT)
    broken = given._replace(params=jax.tree.map(lambda leaf: leaf * jnp.inf, given.params))
    with pytest.raises(FloatingPointError, match="not finite"):
        upscaled(broken, pictures(1, 4, 4))


@pytest.mark.parametrize(("tile", "overlap"), [(8, 4), (5, 3), (1, 1)])
def test_tiles_that_are_all_overlap_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"of a tile of {tile} nothing is left between overlaps of {overlap}"):
        upscaled(upscaler_of(COMPACT), pictures(1, 20, 20), tile, overlap)


def test_no_pictures_are_none() -> None:
    assert upscaled(upscaler_of(COMPACT), pictures(0, 5, 6)).shape == (0, 10, 12, 3)
