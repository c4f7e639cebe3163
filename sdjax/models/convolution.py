"""The convolution of all networks."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# XLA leaves a convolution of at most so many channels on both sides, or with a kernel larger than what it runs over, to
# Eigen instead of YNNPACK; and Eigen splits sums by the number of threads.
_FEW_CHANNELS = 16
# What fewer are filled up to, with zeros.
_ENOUGH_CHANNELS = 32


def _convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c d"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b y x d"]:
    """`lax.conv_general_dilated` with the same bits on the CPU for any number of threads."""
    window, features = kernel.shape[:2], kernel.shape[3]
    if max(kernel.shape[2:]) <= _FEW_CHANNELS:
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, _ENOUGH_CHANNELS - features)))
    if window[0] > x.shape[1] or window[1] > x.shape[2]:
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), "VALID"
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)[..., :features]


Conv = functools.partial(nn.Conv, conv_general_dilated=_convolve)
