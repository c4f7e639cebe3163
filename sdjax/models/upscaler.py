"""Networks that enlarge pictures: ESRGAN's RRDBNet, and the compact one that Real-ESRGAN has for video.

Wang et al. 2018 (arXiv:1809.00219) and 2021 (arXiv:2107.10833). Both take and give RGB in [0, 1]; what they give is not
clipped. Modules are called as in Real-ESRGAN's checkpoints.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.models.config import require, require_positive
from sdjax.models.convolution import Conv
from sdjax.models.resnet import nearest

# Of a residual, where it is added; and the slope of the activations below zero.
_RESIDUAL, _SLOPE = 0.2, 0.2
# The parameter of cubic convolution (Keys 1981) that torch, OpenCV and ncnn take.
_CUBIC = -0.75


@dataclasses.dataclass(frozen=True)
class RRDBNetConfig:
    """Sizes of an `RRDBNet`.

    Attributes:
      blocks: residual in residual dense ones.
      features: channels between them.
      growth: channels that each layer of a dense block adds.
      doublings: how many times the resolution is doubled after the blocks.
      unshuffle: side of the squares of pixels that are put into channels before the first layer.
    """

    blocks: int = 23
    features: int = 64
    growth: int = 32
    doublings: int = 2
    unshuffle: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "blocks", "features", "growth", "unshuffle")
        require(0 <= self.doublings <= 4, f"doublings = {self.doublings}; implemented are up to 4 (16 times larger)")
        require(
            2**self.doublings % self.unshuffle == 0,
            f"a picture of which {self.unshuffle} pixels a side become one, doubled {self.doublings} times, is made "
            "no whole number of times larger",
        )

    @property
    def scale(self) -> int:
        """How many times larger a picture becomes."""
        return 2**self.doublings // self.unshuffle

    @property
    def reach(self) -> int:
        """Pixels around one on which what becomes of it depends, at most (most of it on far fewer)."""
        convolutions = 15 * self.blocks + 2
        after = sum(0.5**level for level in range(1, self.doublings + 1)) + 2 * 0.5**self.doublings
        return math.ceil((convolutions + after + 1) * self.unshuffle)


@dataclasses.dataclass(frozen=True)
class CompactConfig:
    """Sizes of a `Compact`.

    Attributes:
      convolutions: between the first and the last.
      features: channels between them.
      shuffle: how many times larger the network makes a picture.
      scale: how many times larger it becomes in the end, resized by cubic convolution from there if that is less.
    """

    convolutions: int = 16
    features: int = 64
    shuffle: int = 4
    scale: int = 4

    def __post_init__(self) -> None:
        require_positive(self, "features", "shuffle", "scale")
        require(self.convolutions >= 0, f"convolutions = {self.convolutions} is below zero")
        require(self.scale <= self.shuffle, f"scale = {self.scale} is more than the {self.shuffle} of the network")

    @property
    def unshuffle(self) -> int:
        """Of this network: pixels are taken as they are."""
        return 1

    @property
    def reach(self) -> int:
        """Pixels around one on which what becomes of it depends."""
        return self.convolutions + 2 + (self.scale < self.shuffle)


UpscalerConfig = RRDBNetConfig | CompactConfig


def _activated(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return jax.nn.leaky_relu(x, _SLOPE)


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it gave; the last one's is added to what came in."""

    growth: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        found = [x]
        for layer in range(1, 5):
            y = Conv(self.growth, (3, 3), name=f"conv{layer}")(jnp.concatenate(found, axis=-1))
            found.append(_activated(y))
        return x + _RESIDUAL * Conv(x.shape[-1], (3, 3), name="conv5")(jnp.concatenate(found, axis=-1))


class _ResidualBlock(nn.Module):
    """Three dense blocks, and a residual around them; a step of `nn.scan`."""

    growth: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], _: None) -> tuple[Float[Array, "b h w c"], None]:
        y = x
        for block in range(1, 4):
            y = _DenseBlock(self.growth, name=f"rdb{block}")(y)
        return x + _RESIDUAL * y, None


class RRDBNet(nn.Module):
    """Residual in residual dense blocks at the resolution given, and convolutions after each doubling of it.

    The blocks are one that is run again and again, so that 23 compile as fast as one; the parameters of all lie along
    the first axis of those under `body`.
    """

    config: RRDBNetConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b i j 3"]:
        """Both sides are multiples of `unshuffle`."""
        cfg = self.config
        first = Conv(cfg.features, (3, 3), name="conv_first")(pixel_unshuffle(pixels, cfg.unshuffle))
        every = nn.scan(_ResidualBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=cfg.blocks)
        x, _ = every(cfg.growth, name="body")(first, None)
        x = first + Conv(cfg.features, (3, 3), name="conv_body")(x)
        for level in range(1, cfg.doublings + 1):
            x = nearest(x, 2 * x.shape[1], 2 * x.shape[2])
            x = _activated(Conv(cfg.features, (3, 3), name=f"conv_up{level}")(x))
        x = _activated(Conv(cfg.features, (3, 3), name="conv_hr")(x))
        return Conv(3, (3, 3), name="conv_last")(x)


class _PReLU(nn.Module):
    """Leaky ReLU with a slope for each channel that was learnt (He et al. 2015)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        slopes = self.param("scale", nn.initializers.constant(0.25), x.shape[-1:])
        return jnp.where(x >= 0, x, slopes[None, None, None] * x)


class Compact(nn.Module):
    """SRVGGNetCompact: convolutions at the resolution given; what they give is added to the nearest pixel."""

    config: CompactConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b i j 3"]:
        cfg = self.config
        x = pixels
        for layer in range(cfg.convolutions + 1):
            x = Conv(cfg.features, (3, 3), name=f"body_{2 * layer}")(x)
            x = _PReLU(name=f"body_{2 * layer + 1}")(x)
        x = Conv(3 * cfg.shuffle**2, (3, 3), name=f"body_{2 * cfg.convolutions + 2}")(x)
        height, width = pixels.shape[1:3]
        x = pixel_shuffle(x, cfg.shuffle) + nearest(pixels, cfg.shuffle * height, cfg.shuffle * width)
        if cfg.scale != cfg.shuffle:
            x = _resized(_resized(x, cfg.scale * height, 1), cfg.scale * width, 2)
        return x


def network_of(config: UpscalerConfig) -> RRDBNet | Compact:
    """The module of a config."""
    return RRDBNet(config) if isinstance(config, RRDBNetConfig) else Compact(config)


def pixel_unshuffle(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b i j d"]:
    """Squares of pixels as channels, in torch's order: channel, row, column."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // side, side, width // side, side, channels)
    return squares.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // side, width // side, channels * side**2)


def pixel_shuffle(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b i j d"]:
    """The way back from `pixel_unshuffle`."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height, width, channels // side**2, side, side)
    return squares.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height * side, width * side, channels // side**2)


def _resized(x: Float[Array, "b h w c"], length: int, axis: int) -> Float[Array, "b i j c"]:
    """Cubic convolution along an axis, as torch's `interpolate`: beyond a border lies what is at it."""
    given = x.shape[axis]
    centres = (np.arange(length) + 0.5) * (given / length) - 0.5
    first = np.floor(centres).astype(int) - 1
    result = jnp.zeros((), x.dtype)
    for tap in range(4):
        weights = _keys(np.abs(centres - (first + tap)))
        taken = jnp.take(x, np.clip(first + tap, 0, given - 1), axis=axis)
        shape = [length if each == axis else 1 for each in range(4)]
        result = result + jnp.asarray(weights.reshape(shape), x.dtype) * taken
    return result


def _keys(distance: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Weights of pixels at distances below 2 (Keys 1981)."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
