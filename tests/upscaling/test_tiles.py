"""Images enlarged a tile at a time."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.checkpoints.upscaler_file import UpscalerNetwork, read_upscaler
from sdjax.models.upscaler import CompactConfig, RRDBNetConfig, UpscalerConfig
from tests.golden import upscalers

# Reach of 4 pixels.
COMPACT = CompactConfig(convolutions=2, features=32, shuffle=2, scale=2)
UNSHUFFLED = RRDBNetConfig(blocks=1, features=32, growth=24, doublings=2, unshuffle=2)


@functools.cache
def upscaler_of(config: UpscalerConfig) -> UpscalerNetwork:
    with tempfile.TemporaryDirectory() as folder:
        return read_upscaler(upscalers.write(Path(folder) / "it.safetensors", config))


def upscaled(*arguments: Any, **options: Any) -> np.ndarray:
    return upscalers.enlarged(*arguments, **options).images


def images(count: int, height: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, height, width, 3)).astype(np.uint8)


def differences(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.uint8
    return np.abs(found.astype(int) - expected.astype(int))


def whole(config: UpscalerConfig, pixels: np.ndarray) -> np.ndarray:
    """What the network gives for whole images, which it takes."""
    values = upscalers.given_by(upscaler_of(config), pixels.astype(np.float32) / 255)
    return np.round(np.clip(values * 255, 0, 255)).astype(np.uint8)


# Of sums that are rounded otherwise, one value in thousands goes to the next of 256.
def check_same(found: np.ndarray, expected: np.ndarray) -> None:
    apart = differences(found, expected)
    assert apart.max() <= 1 and apart.astype(bool).mean() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(20, 33), (16, 45), (9, 41), (40, 3)])
def test_tiles_with_all_that_the_network_reaches_give_the_whole_image(height: int, width: int) -> None:
    pixels = images(1, height, width)
    found = upscaled(upscaler_of(COMPACT), pixels, tile=16, overlap=COMPACT.reach)
    assert found.shape == (1, 2 * height, 2 * width, 3)
    check_same(found, whole(COMPACT, pixels))


def test_tiles_with_less_differ_only_where_they_meet() -> None:
    pixels = images(1, 8, 40)
    found = upscaled(upscaler_of(COMPACT), pixels, tile=24, overlap=0)
    apart = differences(found, whole(COMPACT, pixels)).max(axis=(0, 1, 3))
    # The second of two tiles begins at 16; the result changes in the middle of what both have, at 20, where it was seen
    # as far as it matters.
    assert apart.max() <= 1
    found = upscaled(upscaler_of(COMPACT), images(1, 8, 48), tile=24, overlap=0)
    apart = differences(found, whole(COMPACT, images(1, 8, 48))).max(axis=(0, 1, 3))
    assert apart[46:50].max() > 1
    assert apart[: 2 * (24 - COMPACT.reach)].max() <= 1 and apart[2 * (24 + COMPACT.reach) :].max() <= 1


@pytest.mark.parametrize(
    ("config", "height", "width"),
    [(COMPACT, 1, 1), (COMPACT, 1, 7), (COMPACT, 5, 1), (UNSHUFFLED, 1, 1), (UNSHUFFLED, 3, 2)],
)
def test_an_image_of_any_size_becomes_larger(config: UpscalerConfig, height: int, width: int) -> None:
    found = upscaled(upscaler_of(config), images(1, height, width))
    assert found.shape == (1, 2 * height, 2 * width, 3)


def test_an_image_of_no_whole_number_of_squares_is_continued_by_its_reflection() -> None:
    pixels = images(1, 15, 21)
    found = upscaled(upscaler_of(UNSHUFFLED), pixels)
    continued = np.concatenate([pixels, pixels[:, -2:-1]], axis=1)
    continued = np.concatenate([continued, continued[:, :, -2:-1]], axis=2)
    check_same(found, whole(UNSHUFFLED, continued)[:, :30, :42])


def test_tiles_of_unshuffled_pixels_begin_at_whole_squares() -> None:
    pixels = images(1, 14, 43)
    found = upscaled(upscaler_of(UNSHUFFLED), pixels, tile=17, overlap=4)
    expected = upscaled(upscaler_of(UNSHUFFLED), pixels)
    # A tile out of step would differ everywhere.
    assert np.median(differences(found, expected)) == 0


def test_numbers_of_16_bits_are_near() -> None:
    given = upscaler_of(COMPACT)
    halved = given._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), given.params))
    apart = differences(upscaled(halved, images(1, 16, 16)), upscaled(given, images(1, 16, 16)))
    assert apart.max() > 0 and apart.mean() < 3


def test_what_is_not_finite_is_no_image() -> None:
    given = upscaler_of(COMPACT)
    broken = given._replace(params=jax.tree.map(lambda leaf: leaf * jnp.inf, given.params))
    assert not upscalers.enlarged(broken, images(1, 4, 4)).finite.any()


@pytest.mark.parametrize(("tile", "overlap"), [(8, 4), (5, 3), (1, 1)])
def test_tiles_that_are_all_overlap_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"of a tile of {tile} nothing is left between overlaps of {overlap}"):
        upscaled(upscaler_of(COMPACT), images(1, 20, 20), tile, overlap)
