"""Upscalers against recordings of torch, and how far they see."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.checkpoints.upscaler_file import read_upscaler
from sdjax.models import ConfigError
from sdjax.models.interpolation import pixel_shuffle, pixel_unshuffle
from sdjax.models.upscaler import (
    CompactConfig,
    RRDBNetConfig,
    UpscalerConfig,
    network_of,
)
from tests.golden import upscalers
from tests.golden.networks import relative_error


@functools.cache
def references() -> dict[str, np.ndarray]:
    with np.load(upscalers.RECORDED) as stored:
        return dict(stored)


@pytest.mark.parametrize("name", upscalers.CASES)
def test_a_network_gives_what_the_reference_gave(name: str, tmp_path: Path) -> None:
    case = upscalers.CASES[name]
    upscaler = read_upscaler(upscalers.write_ncnn(tmp_path / "it.param", case.config)) if "resized" in name else None
    upscaler = upscaler or read_upscaler(upscalers.write(tmp_path / "it.safetensors", case.config))
    assert upscaler.config == case.config
    found = upscalers.given_by(upscaler, upscalers.pixels(case))
    assert relative_error(found, references()[name]) < upscalers.TOLERANCE


def test_pixels_are_put_into_channels_in_torchs_order() -> None:
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    found = pixel_unshuffle(jnp.asarray(x), 2)
    assert found.shape == (2, 2, 3, 12)
    for channel, row, column in np.ndindex(3, 2, 2):
        place = channel * 4 + row * 2 + column
        np.testing.assert_array_equal(found[..., place], x[:, row::2, column::2, channel])
    np.testing.assert_array_equal(pixel_shuffle(found, 2), x)


@pytest.mark.parametrize(
    "config",
    [
        RRDBNetConfig(1, 8, 4, 2, 1),
        RRDBNetConfig(1, 8, 4, 2, 2),
        RRDBNetConfig(1, 8, 4, 0, 1),
        CompactConfig(3, 8, 4, 4),
        CompactConfig(3, 8, 4, 3),
    ],
)
def test_what_becomes_of_a_pixel_depends_on_those_within_reach(config: UpscalerConfig) -> None:
    network, step = network_of(config), config.unshuffle
    side = -(-(config.reach + 4) // step) * step
    # What is no number makes none of all that it is part of, whatever the weights.
    pixels = jnp.zeros((1, side, step, 3)).at[:, 0].set(jnp.nan)
    shapes = jax.eval_shape(network.init, jax.random.key(0), pixels)
    found = jax.jit(network.apply)(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes), pixels)
    last = np.flatnonzero(np.isnan(np.asarray(found)).any(axis=(0, 2, 3))).max() // config.scale
    # Which pixel of a square is asked about makes a difference.
    assert config.reach - step <= last <= config.reach


def test_blocks_are_one_that_is_run_again_so_that_many_compile_as_fast() -> None:
    def length(blocks: int) -> int:
        network = network_of(RRDBNetConfig(blocks, 8, 4))
        pixels = jnp.zeros((1, 4, 4, 3))
        params = jax.eval_shape(network.init, jax.random.key(0), pixels)
        return len(jax.jit(network.apply).lower(params, pixels).as_text())

    assert length(23) < 1.01 * length(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RRDBNetConfig(blocks=0), "blocks = 0 is not positive"),
        (lambda: RRDBNetConfig(doublings=5), "doublings = 5"),
        (lambda: RRDBNetConfig(doublings=1, unshuffle=4), "no whole number of times larger"),
        (lambda: RRDBNetConfig(unshuffle=3), "no whole number of times larger"),
        (lambda: CompactConfig(scale=5), "scale = 5 is more than the 4"),
        (lambda: CompactConfig(convolutions=-1), "convolutions = -1 is below zero"),
    ],
)
def test_a_network_that_cannot_be_is_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
