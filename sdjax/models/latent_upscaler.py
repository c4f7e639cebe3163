"""The UNet of Stable Diffusion's latent upscaler: latents to latents of twice the height and width.

Katherine Crowson's, of k-diffusion; numbers match diffusers' `UNet2DConditionModel` of its K blocks. It differs from
the UNet of images throughout: the noise level and the whole prompt scale and shift every group norm (Dhariwal and
Nichol 2021, arXiv:2105.05233, section 3), there is no middle and no norm at the end, one skip a level, attention
without feed-forward, and changes of resolution by a fixed filter.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdjax.models.attention import Attention
from sdjax.models.config import (
    MOST_CHANNELS,
    ConfigError,
    check_class,
    read_config,
    require,
    require_layers,
    require_levels,
    require_positive,
    require_sample_size,
)
from sdjax.models.convolution import Conv

# Channels of a group of the group norms.
_GROUP = 32
# Of the group norms before attention, and of layer norms; the config says that of the others.
_EPS = 1e-5

# Switches of diffusers' class that make it this network; its defaults are other ones.
_MADE_BY: Mapping[str, Any] = {
    "act_fn": "gelu",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "mid_block_type": None,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
}
_FIXED = {
    **_MADE_BY,
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "dropout": 0.0,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
}
# Of other blocks than these.
_INFORMATIVE = frozenset(
    {
        "cross_attention_norm", "downsample_padding", "dual_cross_attention", "freq_shift",
        "mid_block_only_cross_attention", "mid_block_scale_factor", "only_cross_attention",
        "projection_class_embeddings_input_dim", "resnet_out_scale_factor", "resnet_skip_time_act",
        "resnet_time_scale_shift", "reverse_transformer_layers_per_block", "transformer_layers_per_block",
        "upcast_attention", "use_linear_projection",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LatentUpscalerConfig:
    """`unet/config.json` of a latent upscaler.

    `attention_head_dim` is the width of a head here. `time_cond_proj_dim` is the width of what is known beside noise
    and text: how noisy the image is, and the whole prompt.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 8
    out_channels: int = 5
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("KDownBlock2D",) + ("KCrossAttnDownBlock2D",) * 3
    up_block_types: tuple[str, ...] = ("KCrossAttnUpBlock2D",) * 3 + ("KUpBlock2D",)
    block_out_channels: tuple[int, ...] = (384, 384, 768, 768)
    layers_per_block: int = 4
    norm_eps: float = 1e-5
    cross_attention_dim: int = 768
    attention_head_dim: int = 64
    time_cond_proj_dim: int = 896

    def __post_init__(self) -> None:
        channels, levels = self.block_out_channels, len(self.block_out_channels)
        require_levels(self, "block_out_channels", "down_block_types", "up_block_types")
        require_positive(
            self, "in_channels", "out_channels", "block_out_channels", "layers_per_block",
            "cross_attention_dim", "attention_head_dim", "time_cond_proj_dim", most=MOST_CHANNELS,
        )  # fmt: skip
        require_positive(self, "norm_eps", most=1.0)
        require_sample_size(self.sample_size)
        require_layers(self.layers, "block_out_channels", "layers_per_block")
        require(levels >= 2, f"block_out_channels = {channels}: expected two levels or more")
        for name, types in (
            ("down_block_types", ("KDownBlock2D",) + ("KCrossAttnDownBlock2D",) * (levels - 1)),
            ("up_block_types", ("KCrossAttnUpBlock2D",) * (levels - 1) + ("KUpBlock2D",)),
        ):
            require(getattr(self, name) == types, f"{name} = {getattr(self, name)}: expected {types}")
        require(
            all(each % _GROUP == 0 and each % self.attention_head_dim == 0 for each in channels),
            f"block_out_channels = {channels}: expected multiples of {_GROUP}, the width of a group, and of "
            f"attention_head_dim = {self.attention_head_dim}",
        )
        # diffusers tells the lowest level on the way up, which has self-attention and no skip, by these.
        lowest = [channels[level] == channels[level - 1] == self.time_width for level in range(1, levels)]
        require(
            lowest == [False] * (levels - 2) + [True],
            f"block_out_channels = {channels}: expected the last two, and no others, to be {self.time_width}, twice "
            "the first",
        )

    @property
    def layers(self) -> int:
        """Residual blocks, each with attention but on the highest level, down and up."""
        return len(self.block_out_channels) * (2 * self.layers_per_block + 1) * 2

    @property
    def time_width(self) -> int:
        """Of the embedding of noise level and condition."""
        return 2 * self.block_out_channels[0]

    @property
    def factor(self) -> int:
        """What the sides of latents must be multiples of."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "unet/config.json") -> "LatentUpscalerConfig":
        """Reads diffusers' config; raises `ConfigError` for what is not implemented."""
        check_class(data.get("_class_name"), ("UNet2DConditionModel",), where)
        for key, value in _MADE_BY.items():
            if key not in data:
                raise ConfigError(f"{where}: {key} is missing; a latent upscaler has {value!r}, which is no default")
        return read_config(cls, data, fixed=_FIXED, informative=_INFORMATIVE, where=where)


def _gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.gelu(x, approximate=False)


class AdaptiveNorm(nn.Module):
    """A group norm, scaled and shifted by what the time embedding says."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], time: Float[Array, "b t"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        norm = nn.GroupNorm(
            channels // _GROUP, epsilon=self.eps, use_bias=False, use_scale=False, use_fast_variance=False
        )
        scale, shift = jnp.split(nn.Dense(2 * channels, name="linear")(time)[:, None, None], 2, axis=-1)
        return norm(x) * (1 + scale) + shift


class Residual(nn.Module):
    """Adaptive norm, GELU, convolution, twice.

    Attributes:
      hidden: channels between the convolutions.
      channels: of the result.
    """

    hidden: int
    channels: int
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], time: Float[Array, "b t"]) -> Float[Array, "b h w d"]:
        y = Conv(self.hidden, (3, 3), name="conv1")(_gelu(AdaptiveNorm(self.eps, name="norm1")(x, time)))
        y = Conv(self.channels, (3, 3), name="conv2")(_gelu(AdaptiveNorm(self.eps, name="norm2")(y, time)))
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, (1, 1), use_bias=False, name="conv_shortcut")(x)
        return x + y


class _CrossAttention(nn.Module):
    """Attention to the text, which is normalised before."""

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b m e"], mask: Bool[Array, "b m"] | None
    ) -> Float[Array, "b n c"]:
        context = nn.LayerNorm(epsilon=_EPS, use_fast_variance=False, name="norm_cross")(context)
        attention = Attention(self.heads, qkv_bias=True, name="attention")
        nn.share_scope(self, attention)  # diffusers keeps to_q, ... beside norm_cross
        return attention(x, context, mask)


class AttentionBlock(nn.Module):
    """Attention to the text, and before it to the pixels if `to_itself`, each added to its normalised input."""

    head_width: int
    to_itself: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b t"],
        context: Float[Array, "b m e"],
        mask: Bool[Array, "b m"] | None,
    ) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        heads = channels // self.head_width

        def normalised(name: str) -> Float[Array, "b n c"]:
            return AdaptiveNorm(_EPS, name=name)(x, time).reshape(batch, height * width, channels)

        if self.to_itself:
            x = x + Attention(heads, qkv_bias=True, name="attn1")(normalised("norm1")).reshape(x.shape)
        return x + _CrossAttention(heads, name="attn2")(normalised("norm2"), context, mask).reshape(x.shape)


def halved(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Half the height and width, by the filter (1, 3, 3, 1) / 8 along each; the image is mirrored at its edges."""
    for axis in (1, 2):
        x = _padded(x, axis)
        first, second, third, fourth = (
            jax.lax.slice_in_dim(x, start, x.shape[axis] - 3 + start, 2, axis) for start in range(4)
        )
        x = (first + fourth) * 0.125 + (second + third) * 0.375
    return x


def doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Twice the height and width, by the same filter: each value has three parts of the nearest, one of the next."""
    for axis in (1, 2):
        length = x.shape[axis]
        padded = _padded(x, axis)
        before, after = (jax.lax.slice_in_dim(padded, start, start + length, 1, axis) for start in (0, 2))
        pairs = jnp.stack([x * 0.75 + before * 0.25, x * 0.75 + after * 0.25], axis=axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])
    return x


def _padded(x: Float[Array, "b h w c"], axis: int) -> Float[Array, "b i j c"]:
    return jnp.pad(x, [(1, 1) if each == axis else (0, 0) for each in range(4)], mode="reflect")


class _Level(nn.Module):
    """Residual blocks at one resolution, each with attention but at the first level.

    Attributes:
      then: channels of the last one's result.
    """

    config: LatentUpscalerConfig
    level: int
    then: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b t"],
        context: Float[Array, "b m e"],
        mask: Bool[Array, "b m"] | None,
    ) -> Float[Array, "b h w d"]:
        cfg = self.config
        hidden, lowest = cfg.block_out_channels[self.level], self.level == len(cfg.block_out_channels) - 1
        for index in range(cfg.layers_per_block):
            channels = self.then if index == cfg.layers_per_block - 1 else hidden
            x = Residual(hidden, channels, cfg.norm_eps, name=f"resnets_{index}")(x, time)
            if self.level:
                block = AttentionBlock(cfg.attention_head_dim, lowest, name=f"attentions_{index}")
                x = block(x, time, context, mask)
        return x


class _Frequencies(nn.Module):
    """Sines and cosines at learned frequencies (Tancik et al. 2020, arXiv:2006.10739)."""

    channels: int
    flip_sin_to_cos: bool

    @nn.compact
    def __call__(self, values: Float[Array, " b"]) -> Float[Array, "b c"]:
        frequencies = self.param("kernel", nn.initializers.normal(1.0), (self.channels // 2,))
        angles = values[:, None] * frequencies.astype(jnp.float32)[None] * (2 * math.pi)
        parts = (jnp.cos(angles), jnp.sin(angles)) if self.flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
        return jnp.concatenate(parts, axis=-1)


class _TimeEmbedding(nn.Module):
    """Two linear layers with GELU after each, of the noise level with the condition added."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b c"], condition: Float[Array, "b p"]) -> Float[Array, "b c"]:
        x = x + nn.Dense(x.shape[-1], use_bias=False, name="cond_proj")(condition)
        x = _gelu(nn.Dense(self.channels, name="linear_1")(x))
        return _gelu(nn.Dense(self.channels, name="linear_2")(x))


class LatentUpscalerUNet(nn.Module):
    """Noisy latents beside those to be upscaled, noise level and text to the network's prediction."""

    config: LatentUpscalerConfig

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Float[Array, " b"],
        context: Float[Array, "b m e"],
        condition: Float[Array, "b p"],
        context_mask: Bool[Array, "b m"] | None = None,
    ) -> Float[Array, "b h w o"]:
        """What is predicted stands in `sdjax.upscaling.diffusion_upscale`.

        Args:
          sample: latents at unit variance, then those to be upscaled, at the same size.
          timesteps: a quarter of the logarithm of sigma.
          context: the text encoder's hidden states, attended to where `context_mask` is True.
          condition: of `config.time_cond_proj_dim`.

        Raises:
          ValueError: if a side is no multiple of `config.factor`.
        """
        cfg = self.config
        if any(side % cfg.factor for side in sample.shape[1:3]):
            raise ValueError(
                f"latents of {sample.shape[1]}x{sample.shape[2]}: expected sides that are multiples of {cfg.factor}"
            )
        frequencies = _Frequencies(cfg.time_width, cfg.flip_sin_to_cos, name="time_proj")(timesteps)
        time = _TimeEmbedding(cfg.time_width, name="time_embedding")(frequencies.astype(sample.dtype), condition)

        x = Conv(cfg.block_out_channels[0], (1, 1), name="conv_in")(sample)
        lowest = len(cfg.block_out_channels) - 1
        skips = []
        for level, channels in enumerate(cfg.block_out_channels):
            x = _Level(cfg, level, channels, name=f"down_blocks_{level}")(x, time, context, context_mask)
            if level < lowest:
                skips.append(x)
                x = halved(x)
        for index in range(lowest + 1):
            level = lowest - index
            if level < lowest:
                x = jnp.concatenate([doubled(x), skips.pop()], axis=-1)
            then = cfg.block_out_channels[max(level - 1, 0)]
            x = _Level(cfg, level, then, name=f"up_blocks_{index}")(x, time, context, context_mask)
        return Conv(cfg.out_channels, (1, 1), name="conv_out")(x)
