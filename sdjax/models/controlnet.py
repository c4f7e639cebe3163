"""ControlNet (diffusers' `ControlNetModel`): a copy of a UNet's encoder that sees a control image too.

Zhang, Rao and Agrawala 2023, arXiv:2302.05543.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdjax.models.config import (
    MOST_CHANNELS,
    ConfigError,
    check_class,
    quoted,
    read_config,
    require,
    require_levels,
    require_positive,
)
from sdjax.models.convolution import Conv
from sdjax.models.unet import Context, Residuals, descend, embedded_time
from sdjax.models.unet_config import UNetConfig

# The least of guess mode's factors as a power of ten: of the first residual.
_LEAST_GUESS = -1.0

# Fields of a UNet's config that say nothing of its way down.
_OF_THE_WAY_UP = ("out_channels", "sample_size", "up_block_types")


@dataclasses.dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet's `config.json`.

    `unet` is the UNet that it follows down; what that says of the way up is not heeded.
    """

    unet: UNetConfig = dataclasses.field(default_factory=UNetConfig)
    conditioning_channels: int = 3
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    global_pool_conditions: bool = False

    def __post_init__(self) -> None:
        require_levels(self, "conditioning_embedding_out_channels")
        require_positive(self, "conditioning_channels", "conditioning_embedding_out_channels", most=MOST_CHANNELS)

    @property
    def layers(self) -> int:
        """Of its UNet's way down, less than half of the whole."""
        return self.unet.layers // 2

    @property
    def factor(self) -> int:
        """How many pixels of the control image, along one side, make one latent."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    @property
    def residual_channels(self) -> tuple[int, ...]:
        """The channels of what it gives for each feature that the UNet keeps, and for the middle block."""
        channels = self.unet.block_out_channels
        found = [channels[0]]
        for level, layers in enumerate(self.unet.per_level("layers_per_block")):
            found += [channels[level]] * (layers + (level < len(channels) - 1))
        return (*found, channels[-1])

    def check_fits(self, other: UNetConfig) -> None:
        """Raises `ConfigError` unless it was made for UNets like this one."""
        fields = ("block_out_channels", "layers_per_block", "cross_attention_dim")
        for name in fields:
            ours, theirs = self.unet.per_level(name), other.per_level(name)
            require(
                ours == theirs,
                f"the ControlNet's {name} is {ours}, but the UNet's is {theirs}: it was made for another model",
            )
        # Of a UNet that sees more than latents, it is given these alone.
        for name, wanted in (("in_channels", other.out_channels), ("has_class_embedding", other.has_class_embedding)):
            found = getattr(self.unet, name)
            require(
                found == wanted,
                f"the ControlNet's {name} is {found}, but the UNet's is {wanted}: it was made for another model",
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "config.json") -> "ControlNetConfig":
        """Reads diffusers' config; raises `ConfigError` for what is not implemented."""
        check_class(data.get("_class_name"), ("ControlNetModel",), where)
        own = {field.name for field in dataclasses.fields(cls)} - {"unet"}
        kinds = data.get("down_block_types", UNetConfig.down_block_types)
        if not isinstance(kinds, list | tuple):
            raise ConfigError(f"{where}: down_block_types = {quoted(kinds)} is no list")
        ups = [str(kind).replace("Down", "Up") for kind in reversed(kinds)]
        rest = {key: value for key, value in data.items() if key not in own and key not in _OF_THE_WAY_UP}
        rest.pop("_class_name", None)
        unet = UNetConfig.from_json({**rest, "up_block_types": ups}, where)
        conditioning = read_config(cls, {key: data[key] for key in own if key in data}, fixed={}, where=where)
        return dataclasses.replace(conditioning, unet=unet)


def guess_scales(count: int) -> Float[Array, " n"]:
    """Guess mode's factors for `count` residuals: 0.1 for the first, 1 for the middle block's, evenly in logarithms."""
    return jnp.logspace(_LEAST_GUESS, 0.0, count, dtype=jnp.float32)


def residual_scales(
    config: ControlNetConfig, weights: Float[Array, " b"], guess: Bool[Array, " b"]
) -> Float[Array, "b n"]:
    """The factor of each residual of each image, the middle block's last.

    Args:
      weights: how much each image heeds the network (diffusers' `controlnet_conditioning_scale`); 0 for not at all.
      guess: which are drawn in guess mode. It changes nothing in networks whose residuals are pooled.
    """
    count = len(config.residual_channels)
    plain = jnp.ones(count, jnp.float32)
    guessed = plain if config.global_pool_conditions else guess_scales(count)
    return weights[:, None] * jnp.where(guess[:, None], guessed[None], plain[None])


def added(first: Residuals, second: Residuals) -> Residuals:
    """The sum of what two networks add.

    Raises:
      ValueError: if they are for different UNets.
    """

    def sums(one: tuple[Array, ...], other: tuple[Array, ...], more: int = 0) -> tuple[Array, ...]:
        if one and other and abs(len(one) - len(other)) > more:
            raise ValueError(f"{len(one)} residuals can't be added to {len(other)}: they are for different UNets")
        both = tuple(a + b for a, b in zip(one, other, strict=False))
        return (*both, *one[len(both) :], *other[len(both) :])

    mids = [each.mid for each in (first, second) if each.mid is not None]
    mid = None if not mids else mids[0] if len(mids) == 1 else mids[0] + mids[1]
    return Residuals(sums(first.down, second.down), mid, sums(first.intrablock, second.intrablock, more=1))


class ConditionEmbedding(nn.Module):
    """A control image to features of the latents' size: convolutions, of which every second halves the sides."""

    config: ControlNetConfig

    @nn.compact
    def __call__(self, condition: Float[Array, "b h w k"]) -> Float[Array, "b i j c"]:
        channels = self.config.conditioning_embedding_out_channels
        x = jax.nn.silu(Conv(channels[0], (3, 3), name="conv_in")(condition))
        for index, width in enumerate(channels[1:]):
            # Padded on both sides when halved too, unlike "SAME".
            x = jax.nn.silu(Conv(channels[index], (3, 3), name=f"blocks_{2 * index}")(x))
            halved = Conv(width, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), name=f"blocks_{2 * index + 1}")
            x = jax.nn.silu(halved(x))
        return Conv(self.config.unet.block_out_channels[0], (3, 3), name="conv_out")(x)


class ControlNet(nn.Module):
    """The residuals that are added to a UNet's features so that the image follows a control image.

    The control image is the same at each step, so it is embedded once (`embed`), outside of the loop.
    """

    config: ControlNetConfig

    def setup(self) -> None:
        self.controlnet_cond_embedding = ConditionEmbedding(self.config)

    def embed(self, condition: Float[Array, "b h w k"]) -> Float[Array, "b i j c"]:
        """Embeds a control image (RGB in [0, 1]), `config.factor` times as high and wide as the latents."""
        if self.config.controlnet_conditioning_channel_order == "bgr":
            condition = condition[..., ::-1]
        return self.controlnet_cond_embedding(condition)

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Float[Array, " b"],
        context: Float[Array, "b m e"],
        embedded: Float[Array, "b i j d"],
        class_labels: Int[Array, " b"] | Float[Array, "b ..."] | None = None,
        context_mask: Bool[Array, "b m"] | None = None,
        *,
        scales: Float[Array, "b n"],
    ) -> Residuals:
        """`embedded` is what `embed` gave, `scales` what `residual_scales` gave; the others are as the UNet's.

        Raises:
          ValueError: if `embedded` has not the latents' size, or `scales` not a factor for each residual; if class
            labels are missing, or given to a network that takes none.
        """
        cfg = self.config
        count = len(cfg.residual_channels)
        if embedded.shape[1:3] != sample.shape[1:3]:
            raise ValueError(
                f"the control image was embedded as {embedded.shape[1:3]}, but the latents are {sample.shape[1:3]}; "
                f"it has to have {cfg.factor} pixels for a latent (by conditioning_embedding_out_channels = "
                f"{cfg.conditioning_embedding_out_channels})"
            )
        if scales.shape[1] != count:
            raise ValueError(f"{scales.shape[1]} scales for {count} residuals")
        time = embedded_time(cfg.unet, timesteps, class_labels).astype(sample.dtype)

        x = Conv(cfg.unet.block_out_channels[0], (3, 3), name="conv_in")(sample)
        x, skips = descend(cfg.unet, x + embedded, time, Context(context, context_mask))
        given = [
            Conv(skip.shape[3], (1, 1), name=f"controlnet_down_blocks_{index}")(skip)
            for index, skip in enumerate(skips)
        ]
        given.append(Conv(x.shape[3], (1, 1), name="controlnet_mid_block")(x))
        if cfg.global_pool_conditions:
            given = [jnp.mean(each, axis=(1, 2), keepdims=True) for each in given]
        scaled = [each * scales[:, index, None, None, None].astype(each.dtype) for index, each in enumerate(given)]
        return Residuals(down=tuple(scaled[:-1]), mid=scaled[-1])

    def everything(
        self,
        condition: Float[Array, "b h w k"],
        sample: Float[Array, "b i j c"],
        timesteps: Float[Array, " b"],
        context: Float[Array, "b m e"],
        class_labels: Int[Array, " b"] | Float[Array, "b ..."] | None = None,
    ) -> Residuals:
        """Both halves, each residual whole: what makes all parameters, and what training needs."""
        ones = jnp.ones((len(sample), len(self.config.residual_channels)))
        return self(sample, timesteps, context, self.embed(condition), class_labels, scales=ones)
