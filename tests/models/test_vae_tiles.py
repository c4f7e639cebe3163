"""The VAE over strips of an image against the whole image at once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.models import VAE, Gaussian, VAEConfig, vae_tiles
from tests import toys

# Of values of about 1, in float32: a five-hundredth of what a seam may be. Found: 2e-6. With two rows less around a
# strip, or with one row of the image missing from the norms' statistics, it would be 4e-2 and more.
TOLERANCE = 1e-5

THREE_LEVELS = toys.SD1.vae
ONE_LEVEL = dataclasses.replace(
    THREE_LEVELS,
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
    block_out_channels=(16,),
    use_quant_conv=False,
    use_post_quant_conv=False,
    mid_block_add_attention=False,
)


@functools.cache
def made(config: VAEConfig) -> tuple[VAE, Any]:
    """The network, with random weights."""
    return VAE(config), toys.random_params(toys.param_shapes(config), np.random.RandomState(5))


def normal(*shape: int) -> np.ndarray:
    return np.random.RandomState(6).standard_normal(shape).astype(np.float32)


@functools.cache
def whole(config: VAEConfig, method: str) -> Callable[[np.ndarray], Any]:
    vae, params = made(config)
    return jax.jit(lambda given: vae.apply({"params": params}, given, method=method))


@functools.cache
def tiled(config: VAEConfig, method: str, tile: int) -> Callable[[np.ndarray], Any]:
    vae, params = made(config)
    run = {"decode": vae_tiles.decode, "encode": vae_tiles.encode}[method]
    return jax.jit(lambda given: run(vae, params, given, tile))


# Strips of 4 rows, which is one of latents, and of 16, which don't divide the 36.
@pytest.mark.parametrize("tile", [1, 22])
def test_an_image_decoded_in_strips_is_the_whole_one(tile: int) -> None:
    latents = normal(2, 9, 7, 4)
    found, expected = tiled(THREE_LEVELS, "decode", tile)(latents), whole(THREE_LEVELS, "decode")(latents)
    assert found.shape == (2, 36, 28, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tile", [1, 22])
def test_an_image_encoded_in_strips_is_the_whole_one(tile: int) -> None:
    pixels = np.clip(normal(2, 36, 28, 3) / 2, -1, 1)
    found, expected = tiled(THREE_LEVELS, "encode", tile)(pixels), whole(THREE_LEVELS, "encode")(pixels)
    assert isinstance(found, Gaussian)
    for given, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(given, reference, rtol=0, atol=TOLERANCE)


def test_a_network_of_one_level_works_in_strips_too() -> None:
    latents, pixels = normal(1, 11, 5, 4), normal(1, 11, 5, 3)
    decoded, encoded = tiled(ONE_LEVEL, "decode", 4)(latents), tiled(ONE_LEVEL, "encode", 4)(pixels)
    np.testing.assert_allclose(decoded, whole(ONE_LEVEL, "decode")(latents), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(encoded.mean, whole(ONE_LEVEL, "encode")(pixels).mean, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", ["decode", "encode"])
def test_the_bits_of_an_image_do_not_depend_on_its_neighbours(method: str) -> None:
    given = normal(2, 9, 7, 4) if method == "decode" else normal(2, 36, 28, 3)
    run = tiled(THREE_LEVELS, method, 22)
    together, alone = run(given), run(given[1:])
    for ours, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(ours[1:], theirs)


def test_features_of_the_whole_image_are_not_held_all_at_once() -> None:
    config = dataclasses.replace(THREE_LEVELS, mid_block_add_attention=False)  # which takes the same either way
    latents = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)

    def taken(run: Any) -> int:
        return run.lower(latents).compile().memory_analysis().temp_size_in_bytes

    # Found: 86 against 320 bytes a pixel.
    assert taken(tiled(config, "decode", 64)) < 0.3 * taken(whole(config, "decode"))


def test_the_statistics_of_rows_together_are_those_of_all_values() -> None:
    x = 1000 + normal(1, 5, 6, 8) + np.arange(5)[None, :, None, None].astype(np.float32)
    found = vae_tiles._statistics(vae_tiles._row_sums(jnp.asarray(x), 2))
    groups = x.astype(np.float64).reshape(30, 2, 4)
    np.testing.assert_allclose(found.mean, groups.mean(axis=(0, 2)), rtol=1e-7)
    np.testing.assert_allclose(found.inverse, 1 / np.sqrt(groups.var(axis=(0, 2)) + 1e-6), rtol=1e-4)


def test_an_image_that_is_no_multiple_of_the_factor_is_refused() -> None:
    vae, params = made(THREE_LEVELS)
    with pytest.raises(ValueError, match="26x36 is not in multiples of 4"):
        vae_tiles.encode(vae, params, jnp.zeros((1, 36, 26, 3)), 16)
