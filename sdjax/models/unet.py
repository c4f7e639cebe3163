"""The UNet of Stable Diffusion 1 and 2 (diffusers' `UNet2DConditionModel`).

Ronneberger et al. 2015, arXiv:1505.04597; Rombach et al. 2022, arXiv:2112.10752.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdjax.models.attention import SpatialTransformer
from sdjax.models.config import (
    MOST_CHANNELS,
    MOST_TOKENS,
    read_config,
    require,
    require_layers,
    require_levels,
    require_positive,
    require_sample_size,
)
from sdjax.models.convolution import Conv
from sdjax.models.resnet import Downsample, ResnetBlock, Upsample

_DOWN_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP_ATTENTION = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_CLASS_EMBEDDINGS = (None, "timestep", "identity", "projection")

# Switches of diffusers' class which no Stable Diffusion 1 or 2 checkpoint sets otherwise.
_FIXED = {
    "act_fn": frozenset({"silu", "swish"}),
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": frozenset({None, False}),
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """`unet/config.json`.

    `attention_head_dim` is, against its name, the number of heads (per level if a tuple): diffusers
    reads it so, and all published checkpoints are written so.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    upcast_attention: bool = False

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        require_levels(
            self, "block_out_channels", "down_block_types", "up_block_types", "only_cross_attention",
            "layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim",
        )  # fmt: skip
        require_positive(
            self, "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
            "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim", most=MOST_CHANNELS,
        )  # fmt: skip
        require_positive(self, "norm_eps", most=1.0)
        require_sample_size(self.sample_size)
        for name, most in (("num_class_embeds", MOST_TOKENS), ("projection_class_embeddings_input_dim", MOST_CHANNELS)):
            if getattr(self, name) is not None:
                require_positive(self, name, most=most)
        require(
            0 <= self.freq_shift <= 1,
            f"freq_shift = {self.freq_shift}: expected a number from 0 to 1",
        )
        for kind in self.down_block_types:
            require(kind in _DOWN_ATTENTION, f"down block {kind!r} is not one of {', '.join(_DOWN_ATTENTION)}")
        for kind in self.up_block_types:
            require(kind in _UP_ATTENTION, f"up block {kind!r} is not one of {', '.join(_UP_ATTENTION)}")
        for name in (
            "down_block_types", "up_block_types", "only_cross_attention", "layers_per_block",
            "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim",
        ):  # fmt: skip
            value = getattr(self, name)
            require(
                not isinstance(value, tuple) or len(value) == levels,
                f"{name} = {value} has not one entry for each of the {levels} levels",
            )
        require(
            len(set(self.per_level("cross_attention_dim"))) == 1,
            f"cross_attention_dim = {self.cross_attention_dim}: one text encoder has one width",
        )
        require(
            self.class_embed_type in _CLASS_EMBEDDINGS,
            f"class_embed_type = {self.class_embed_type!r} is not one of {_CLASS_EMBEDDINGS}",
        )
        require(
            self.class_embed_type != "projection" or self.projection_class_embeddings_input_dim is not None,
            "class_embed_type 'projection' needs projection_class_embeddings_input_dim",
        )
        require(
            all(channels % self.norm_num_groups == 0 for channels in self.block_out_channels),
            f"block_out_channels {self.block_out_channels} are not multiples of norm_num_groups {self.norm_num_groups}",
        )
        heads = self.per_level("attention_head_dim")
        require(
            all(self.block_out_channels[level] % heads[level] == 0 for level in self._levels_with_attention),
            f"block_out_channels {self.block_out_channels} are not multiples of the head counts "
            f"{self.attention_head_dim} where there is attention",
        )
        require_layers(self.layers, "block_out_channels", "layers_per_block", "transformer_layers_per_block")

    @property
    def layers(self) -> int:
        """Residual blocks, down and up, and the layers of the transformers after them."""
        transformers, attends = self.per_level("transformer_layers_per_block"), self._levels_with_attention
        return sum(
            (2 * count + 1) * (1 + transformers[level] * (level in attends))
            for level, count in enumerate(self.per_level("layers_per_block"))
        )

    @property
    def _levels_with_attention(self) -> set[int]:
        """Those of the way down and up, and the last, whose middle block has it."""
        down = {level for level, kind in enumerate(self.down_block_types) if _DOWN_ATTENTION[kind]}
        up = {level for level, kind in enumerate(reversed(self.up_block_types)) if _UP_ATTENTION[kind]}
        return down | up | {len(self.block_out_channels) - 1}

    def per_level(self, name: str) -> tuple[Any, ...]:
        """The field `name`, repeated for each level if it is a single value."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def has_class_embedding(self) -> bool:
        """Whether the network takes class labels (numbers, or vectors for 'identity' and 'projection')."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "unet/config.json") -> "UNetConfig":
        """Reads diffusers' config; raises `ConfigError` for what is not implemented."""
        return read_config(cls, data, fixed=_FIXED, where=where, classes=("UNet2DConditionModel",))


def sinusoidal_embedding(
    timesteps: Float[Array, " b"], channels: int, flip_sin_to_cos: bool, freq_shift: float
) -> Float[Array, "b c"]:
    """Sines and cosines of the timesteps at `channels / 2` frequencies from 1 down to 1/10000.

    Vaswani et al. 2017, section 3.5, in the form of Ho et al. 2020 (float32 throughout).
    """
    half = channels // 2
    exponents = -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponents)[None]
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    embedding = jnp.concatenate(parts, axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, channels % 2)))


class TimestepEmbedding(nn.Module):
    """Two linear layers with a SiLU between."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
        x = nn.Dense(self.channels, name="linear_1")(x)
        return nn.Dense(self.channels, name="linear_2")(jax.nn.silu(x))


class _Level(nn.Module):
    """What the down, middle and up blocks are made of: a residual block and, maybe, a transformer."""

    config: UNetConfig
    level: int
    attention: bool

    def residual(self, index: int) -> ResnetBlock:
        cfg = self.config
        return ResnetBlock(
            cfg.block_out_channels[self.level], cfg.norm_num_groups, cfg.norm_eps, name=f"resnets_{index}"
        )

    def transformer(self, index: int) -> SpatialTransformer:
        cfg = self.config
        return SpatialTransformer(
            heads=cfg.per_level("attention_head_dim")[self.level],
            layers=cfg.per_level("transformer_layers_per_block")[self.level],
            groups=cfg.norm_num_groups,
            use_linear_projection=cfg.use_linear_projection,
            only_cross_attention=self.only_cross_attention,
            name=f"attentions_{index}",
        )

    @property
    def only_cross_attention(self) -> bool:
        return self.config.per_level("only_cross_attention")[self.level]


class Context(NamedTuple):
    """What cross-attention looks at; `mask` is True where it may."""

    states: Float[Array, "b m e"]
    mask: Bool[Array, "b m"] | None


class Residuals(NamedTuple):
    """What other networks add to the features of a UNet (diffusers' `*_additional_residual*`).

    down: for each of the features kept for the way up, from that of `conv_in` on, (b, h, w, c) or, for all of its
      places, (b, 1, 1, c). It is added when the way down is over. Empty for none.
    mid: for what the middle block gives, alike; None for none.
    intrablock: for the last layer of each level, (b, h, w, c), added before the features go on down. Empty for none.
      One more is added to what the middle block gives, if it is of its shape, and else left aside.
    """

    down: tuple[Float[Array, "b h w c"], ...] = ()
    mid: Float[Array, "b h w c"] | None = None
    intrablock: tuple[Float[Array, "b h w c"], ...] = ()


class DownBlock(_Level):
    """Gives the features and all that the way up will see of this level."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b t"],
        context: Context,
        intrablock: Float[Array, "..."] | None = None,
    ) -> tuple[Float[Array, "b i j d"], list[Array]]:
        skips = []
        layers = self.config.per_level("layers_per_block")[self.level]
        for index in range(layers):
            x = self.residual(index)(x, time)
            if self.attention:
                x = self.transformer(index)(x, *context)
            if intrablock is not None and index == layers - 1:
                x = _plus(x, intrablock, f"intrablock residual {self.level}")
            skips.append(x)
        if self.level < len(self.config.block_out_channels) - 1:
            x = Downsample("both", name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class MidBlock(_Level):
    """Residual block, transformer, residual block, at the lowest resolution."""

    @property
    def only_cross_attention(self) -> bool:
        return False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b t"], context: Context
    ) -> Float[Array, "b h w c"]:
        x = self.residual(0)(x, time)
        x = self.transformer(0)(x, *context)
        return self.residual(1)(x, time)


class UpBlock(_Level):
    """One layer more than on the way down, each with one of the features kept there."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: list[Array],
        time: Float[Array, "b t"],
        context: Context,
        upsample_to: tuple[int, int] | None,
    ) -> Float[Array, "b i j d"]:
        for index, skip in enumerate(skips):
            x = self.residual(index)(jnp.concatenate([x, skip], axis=-1), time)
            if self.attention:
                x = self.transformer(index)(x, *context)
        return x if upsample_to is None else Upsample(name="upsamplers_0")(x, *upsample_to)


def embedded_time(config: UNetConfig, timesteps: Float[Array, " b"], class_labels: Array | None) -> Float[Array, "b t"]:
    """The embedding that all residual blocks take; makes the modules for it in the network that calls it.

    Raises:
      ValueError: if class labels are missing, or given to a network that takes none.
    """
    if config.has_class_embedding != (class_labels is not None):
        wanted = "needs" if config.has_class_embedding else "takes no"
        raise ValueError(f"this network {wanted} class labels (class_embed_type, num_class_embeds in its config)")
    width = 4 * config.block_out_channels[0]

    def sinusoids(values: Array) -> Array:
        return sinusoidal_embedding(values, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)

    time = TimestepEmbedding(width, name="time_embedding")(sinusoids(timesteps))
    if class_labels is None:
        return time
    if config.class_embed_type is None:
        assert config.num_class_embeds is not None
        return time + nn.Embed(config.num_class_embeds, width, name="class_embedding")(class_labels)
    if config.class_embed_type == "identity":
        return time + class_labels
    labels = sinusoids(class_labels) if config.class_embed_type == "timestep" else class_labels
    return time + TimestepEmbedding(width, name="class_embedding")(labels)


def descend(
    config: UNetConfig,
    x: Float[Array, "b h w c"],
    time: Float[Array, "b t"],
    context: Context,
    intrablock: tuple[Array, ...] = (),
) -> tuple[Float[Array, "b i j d"], list[Array]]:
    """The way down and the middle block, whose modules it makes in the network that calls it.

    Args:
      x: what `conv_in` gives.
      intrablock: see `Residuals`.

    Returns:
      what the middle block gives, and the features kept for the way up, `x` first.
    """
    levels = len(config.block_out_channels)
    skips = [x]
    for level, kind in enumerate(config.down_block_types):
        block = DownBlock(config, level, _DOWN_ATTENTION[kind], name=f"down_blocks_{level}")
        x, kept = block(x, time, context, intrablock[level] if intrablock else None)
        skips.extend(kept)
    return MidBlock(config, levels - 1, True, name="mid_block")(x, time, context), skips


def _plus(x: Float[Array, "b h w c"], residual: Float[Array, "..."], what: str) -> Float[Array, "b h w c"]:
    """Adds a residual, which is for each place of `x`, or one for all of them."""
    if residual.shape not in (x.shape, (x.shape[0], 1, 1, x.shape[3])):
        raise ValueError(
            f"{what} is {residual.shape}, but the UNet's features there are {x.shape}; is it of a network for another "
            "model, or of a control image of another size?"
        )
    return x + residual


class UNet(nn.Module):
    """Noisy latents, timestep and text to the model's prediction (epsilon, v or x0, as it was trained)."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Float[Array, " b"],
        context: Float[Array, "b m e"],
        class_labels: Int[Array, " b"] | Float[Array, "b ..."] | None = None,
        context_mask: Bool[Array, "b m"] | None = None,
        residuals: Residuals | None = None,
    ) -> Float[Array, "b h w o"]:
        """`context` are the text encoder's hidden states, attended to where `context_mask` is True.

        Class labels are given only where the config asks.

        Raises:
          ValueError: if class labels are missing, or given to a network that takes none; if residuals are of a
            network for another UNet.
        """
        cfg = self.config
        levels = len(cfg.block_out_channels)
        time = embedded_time(cfg, timesteps, class_labels).astype(sample.dtype)

        attended = Context(context, context_mask)
        down, mid, intrablock = residuals or Residuals()
        if intrablock and len(intrablock) not in (levels, levels + 1):
            raise ValueError(f"{len(intrablock)} intrablock residuals for a UNet of {levels} levels")

        x = Conv(cfg.block_out_channels[0], (3, 3), name="conv_in")(sample)
        x, skips = descend(cfg, x, time, attended, intrablock)
        if len(intrablock) > levels and intrablock[-1].shape == x.shape:
            x = x + intrablock[-1]
        if down:
            if len(down) != len(skips):
                raise ValueError(f"{len(down)} down residuals for a UNet that keeps {len(skips)} features")
            skips = [
                _plus(skip, each, f"down residual {i}") for i, (skip, each) in enumerate(zip(skips, down, strict=True))
            ]
        if mid is not None:
            x = _plus(x, mid, "the middle residual")
        for index, kind in enumerate(cfg.up_block_types):
            level = levels - 1 - index
            count = cfg.per_level("layers_per_block")[level] + 1
            skips, used = skips[:-count], skips[-count:][::-1]
            upsample_to = skips[-1].shape[1:3] if skips else None
            block = UpBlock(cfg, level, _UP_ATTENTION[kind], name=f"up_blocks_{index}")
            x = block(x, used, time, attended, upsample_to)
        norm = nn.GroupNorm(cfg.norm_num_groups, epsilon=cfg.norm_eps, use_fast_variance=False, name="conv_norm_out")
        return Conv(cfg.out_channels, (3, 3), name="conv_out")(jax.nn.silu(norm(x)))
