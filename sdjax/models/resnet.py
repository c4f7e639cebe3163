"""The residual block and the changes of resolution which the UNet and the VAE share."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.models.convolution import Conv


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice; the time embedding is added between (He et al. 2016).

    Attributes:
      channels: of the result.
      groups: of the group norms.
      eps: of the group norms (the UNet's config says it; 1e-6 in the VAE).
    """

    channels: int
    groups: int
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], time: Float[Array, "b t"] | None = None) -> Float[Array, "b h w d"]:
        def norm(name: str) -> nn.GroupNorm:
            return nn.GroupNorm(self.groups, epsilon=self.eps, use_fast_variance=False, name=name)

        y = Conv(self.channels, (3, 3), name="conv1")(jax.nn.silu(norm("norm1")(x)))
        if time is not None:
            y = y + nn.Dense(self.channels, name="time_emb_proj")(jax.nn.silu(time))[:, None, None]
        y = Conv(self.channels, (3, 3), name="conv2")(jax.nn.silu(norm("norm2")(y)))
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, (1, 1), name="conv_shortcut")(x)
        return x + y


# The UNet pads both sides, the VAE's encoder only right and below (as the original code does).
_DOWNSAMPLE_PADDING = {"both": ((1, 1), (1, 1)), "after": ((0, 1), (0, 1))}


class Downsample(nn.Module):
    """A convolution of stride 2."""

    padding: Literal["both", "after"]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        padding = _DOWNSAMPLE_PADDING[self.padding]
        return Conv(x.shape[-1], (3, 3), strides=(2, 2), padding=padding, name="conv")(x)


def nearest(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b i j c"]:
    """Resizes by nearest neighbour as torch does: source index floor(i * old / new)."""
    if (height, width) == (2 * x.shape[1], 2 * x.shape[2]):
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    rows = jnp.arange(height) * x.shape[1] // height
    columns = jnp.arange(width) * x.shape[2] // width
    return x[:, rows][:, :, columns]


class Upsample(nn.Module):
    """Nearest neighbour to the given size, or to twice its own, then a convolution."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], height: int | None = None, width: int | None = None
    ) -> Float[Array, "b i j c"]:
        resized = nearest(x, height or 2 * x.shape[1], width or 2 * x.shape[2])
        return Conv(x.shape[-1], (3, 3), name="conv")(resized)
