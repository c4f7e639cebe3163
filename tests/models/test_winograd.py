"""Convolutions by Winograd's filtering against plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sdjax.models.unet import UNet, UNetConfig
from sdjax.models.winograd import Kernels, convolve, convolving, kernels_of, transformed


@pytest.mark.parametrize("height, width", [(8, 8), (7, 9), (1, 2), (16, 5)])
def test_a_convolution_is_the_plain_one(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    x = jnp.asarray(rng.standard_normal((2, height, width, 24)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 24, 40)) / np.sqrt(9 * 24), jnp.float32)
    expected = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(convolve(x, transformed(kernel)), expected, rtol=0, atol=5e-6)


def config_of(*channels: int) -> UNetConfig:
    return UNetConfig(
        block_out_channels=channels, layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def kernels_of_shapes(config: UNetConfig) -> set[tuple[str, ...]]:
    inputs = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 5, 8))
    shapes = jax.eval_shape(lambda: UNet(config).init(jax.random.key(1), *inputs))["params"]
    return set(kernels_of(config, shapes))


def test_kernels_are_those_of_stride_1_and_of_large_networks_not_those_of_the_lowest_resolution() -> None:
    small, large = kernels_of_shapes(config_of(64, 128)), kernels_of_shapes(config_of(640, 1280))
    assert ("up_blocks_0", "upsamplers_0", "conv") in small and ("down_blocks_0", "resnets_0", "conv1") in small
    assert ("mid_block", "resnets_0", "conv2") in small
    assert not any("downsamplers_0" in path or "conv_shortcut" in path for path in small)
    assert large == {path for path in small if path[0] in ("down_blocks_0", "up_blocks_1")}
    assert not kernels_of_shapes(config_of(16, 32))


def test_a_unet_with_transformed_kernels_gives_the_same_and_uses_each() -> None:
    config = config_of(64, 64)
    network = UNet(config)
    inputs = jax.random.normal(jax.random.key(0), (2, 8, 8, 4)), jnp.array([3.0, 500.0]), jnp.ones((2, 5, 8))
    params = network.init(jax.random.key(1), *inputs)["params"]
    kernels = kernels_of(config, params)

    @jax.jit
    def applied(kernels: Kernels) -> jax.Array:
        with convolving(kernels):
            return network.apply({"params": params}, *inputs)

    whole = {path: transformed(kernel) for path, kernel in kernels.items()}
    np.testing.assert_allclose(applied(whole), network.apply({"params": params}, *inputs), rtol=0, atol=1e-5)
    for path in kernels:
        assert np.isnan(applied({**whole, path: jnp.full_like(whole[path], jnp.nan)})).any(), path
