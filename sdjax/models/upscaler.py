"""Networks that upscale images: ESRGAN's RRDBNet, and the compact one that Real-ESRGAN has for video.

Wang et al. 2018 (arXiv:1809.00219) and 2021 (arXiv:2107.10833). Both take and give RGB in [0, 1]; what they give is not
clipped. Modules are called as in Real-ESRGAN's checkpoints.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.models.config import require, require_positive
from sdjax.models.convolution import Conv
from sdjax.models.interpolation import bicubic, pixel_shuffle, pixel_unshuffle
from sdjax.models.resnet import nearest

# Of a residual, where it is added; and the slope of the activations below zero.
_RESIDUAL, _SLOPE = 0.2, 0.2


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
            f"an image of which {self.unshuffle} pixels a side become one, doubled {self.doublings} times, is made "
            "no whole number of times larger",
        )

    @property
    def scale(self) -> int:
        """How many times larger an image becomes."""
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
      shuffle: how many times larger the network makes an image.
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


@runtime_checkable
class UpscalerConfig(Protocol):
    """What tiles are laid by, of the config of any network that upscales; configs are frozen."""

    @property
    def scale(self) -> int:
        """How many times larger an image becomes."""

    @property
    def unshuffle(self) -> int:
        """Sides of images are multiples of it."""

    @property
    def reach(self) -> int:
        """Pixels around one on which what becomes of it depends, at most."""


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
            x = bicubic(x, cfg.scale * height, cfg.scale * width)
        return x


# The module of each config.
NETWORKS: Mapping[type[Any], Callable[[Any], nn.Module]] = {RRDBNetConfig: RRDBNet, CompactConfig: Compact}


def network_of(config: UpscalerConfig) -> nn.Module:
    """The module of a config."""
    return NETWORKS[type(config)](config)
