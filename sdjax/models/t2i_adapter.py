"""T2I-Adapter (diffusers' `T2IAdapter`): a small network of a control image alone, the same for all steps.

Mou et al. 2023, arXiv:2302.08453.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from sdjax.models.config import (
    MOST_CHANNELS,
    read_config,
    require,
    require_layers,
    require_levels,
    require_positive,
)
from sdjax.models.convolution import Conv
from sdjax.models.interpolation import pixel_unshuffle
from sdjax.models.unet import Residuals
from sdjax.models.unet_config import UNetConfig

FULL, LIGHT = "full_adapter", "light_adapter"
# Of a light adapter, the part of a level's channels that its layers have.
_LIGHT_PART = 4
# Pixels along a side that become one at once: 8, for Stable Diffusion XL 16.
_MOST_DOWNSCALE = 256


@dataclasses.dataclass(frozen=True)
class T2IAdapterConfig:
    """An adapter's `config.json`."""

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = FULL

    def __post_init__(self) -> None:
        require_levels(self, "channels")
        require_positive(self, "in_channels", "channels", "num_res_blocks", most=MOST_CHANNELS)
        require_positive(self, "downscale_factor", most=_MOST_DOWNSCALE)
        require_layers(self.layers, "channels", "num_res_blocks")
        require(
            self.adapter_type != "full_adapter_xl",
            "adapter_type 'full_adapter_xl' is for Stable Diffusion XL, which is not supported",
        )
        require(
            self.adapter_type in (FULL, LIGHT),
            f"adapter_type = {self.adapter_type!r} is not one of {FULL!r}, {LIGHT!r}",
        )
        require(
            self.adapter_type == FULL or all(channels % _LIGHT_PART == 0 for channels in self.channels),
            f"channels = {self.channels} of a light adapter are not multiples of {_LIGHT_PART}",
        )

    @property
    def layers(self) -> int:
        """Residual blocks."""
        return len(self.channels) * self.num_res_blocks

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """The channels of the features, one for each level of the UNet, and maybe one more for its middle block."""
        return self.channels if self.adapter_type == FULL else (*self.channels, self.channels[-1])

    def check_fits(self, other: UNetConfig) -> None:
        """Raises `ConfigError` unless it was made for UNets like this one."""
        levels = len(other.block_out_channels)
        require(
            self.feature_channels[:levels] == other.block_out_channels and len(self.feature_channels) <= levels + 1,
            f"the adapter gives features of {self.feature_channels} channels, but the UNet has "
            f"{other.block_out_channels}: it was made for another model",
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "config.json") -> "T2IAdapterConfig":
        """Reads diffusers' config; raises `ConfigError` for what is not implemented."""
        return read_config(cls, data, fixed={}, where=where, classes=("T2IAdapter",))


class _Residual(nn.Module):
    """Two convolutions with a ReLU between, added to what they are made from."""

    kernel: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = jax.nn.relu(Conv(x.shape[3], (3, 3), name="block1")(x))
        return x + Conv(x.shape[3], (self.kernel, self.kernel), name="block2")(y)


class AdapterBlock(nn.Module):
    """One level. A light one has fewer channels inside.

    Attributes:
      channels: of the result.
      layers: how many residual blocks.
      down: whether height and width are halved first.
      light: whether it is a light adapter's.
    """

    channels: int
    layers: int
    down: bool
    light: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        if self.down:
            # Of an odd side, the last mean is of what there is.
            x = nn.avg_pool(x, (2, 2), strides=(2, 2), padding="SAME", count_include_pad=False)
        width = self.channels // _LIGHT_PART if self.light else self.channels
        if self.light or x.shape[3] != width:
            x = Conv(width, (1, 1), name="in_conv")(x)
        for index in range(self.layers):
            x = _Residual(3 if self.light else 1, name=f"resnets_{index}")(x)
        return Conv(self.channels, (1, 1), name="out_conv")(x) if self.light else x


class T2IAdapter(nn.Module):
    """A control image to the features that are added to a UNet at each level."""

    config: T2IAdapterConfig

    @nn.compact
    def __call__(self, condition: Float[Array, "b h w k"]) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Takes an image with `in_channels` channels in [0, 1], eight (`downscale_factor`) pixels for a latent.

        Raises:
          ValueError: if its height or width is no multiple of that, or it has other channels.
        """
        cfg = self.config
        factor, light = cfg.downscale_factor, cfg.adapter_type == LIGHT
        if condition.shape[1] % factor or condition.shape[2] % factor or condition.shape[3] != cfg.in_channels:
            raise ValueError(
                f"the adapter's control image is {condition.shape[1:]}; expected multiples of {factor} with "
                f"{cfg.in_channels} channels"
            )
        x = pixel_unshuffle(condition, factor)
        if not light:
            x = Conv(cfg.channels[0], (3, 3), name="conv_in")(x)
        features = []
        for level, channels in enumerate(cfg.feature_channels):
            x = AdapterBlock(channels, cfg.num_res_blocks, level > 0, light, name=f"body_{level}")(x)
            features.append(x)
        return tuple(features)


def adapted(features: tuple[Float[Array, "b _ _ _"], ...], weights: Float[Array, " b"]) -> Residuals:
    """What an adapter adds to a UNet, for each image as much as its weight says.

    Args:
      weights: diffusers' `adapter_conditioning_scale`; 0 for not at all.
    """
    return Residuals(intrablock=tuple(each * weights[:, None, None, None].astype(each.dtype) for each in features))
