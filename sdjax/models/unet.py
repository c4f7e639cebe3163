"""The UNet of Stable Diffusion 1 and 2 (diffusers' `UNet2DConditionModel`).

Ronneberger et al. 2015, arXiv:1505.04597; Rombach et al. 2022, arXiv:2112.10752.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdjax.models.attention import SpatialTransformer
from sdjax.models.convolution import Conv
from sdjax.models.resnet import Downsample, ResnetBlock, Upsample
from sdjax.models.unet_config import DOWN_ATTENTION, UP_ATTENTION, UNetConfig


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
    """Gives the features and all that the way up will see of this level, at most `limit` of it; None is no limit."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b t"],
        context: Context,
        intrablock: Float[Array, "..."] | None = None,
        limit: int | None = None,
    ) -> tuple[Float[Array, "b i j d"], list[Array]]:
        skips: list[Array] = []
        layers = self.config.per_level("layers_per_block")[self.level]
        for index in range(layers):
            x = self.residual(index)(x, time)
            if self.attention:
                x = self.transformer(index)(x, *context)
            if intrablock is not None and index == layers - 1:
                x = _plus(x, intrablock, f"intrablock residual {self.level}")
            skips.append(x)
            if len(skips) == limit:
                return x, skips
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
    """One layer more than on the way down, each with one of the features kept there.

    With fewer features the first layers are left out. Gives its result, and what went into each layer.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: list[Array],
        time: Float[Array, "b t"],
        context: Context,
        upsample_to: tuple[int, int] | None,
    ) -> tuple[Float[Array, "b i j d"], list[Array]]:
        layers = self.config.per_level("layers_per_block")[self.level] + 1
        entering = []
        for index, skip in enumerate(skips, layers - len(skips)):
            entering.append(x)
            x = self.residual(index)(jnp.concatenate([x, skip], axis=-1), time)
            if self.attention:
                x = self.transformer(index)(x, *context)
        if upsample_to is not None:
            x = Upsample(name="upsamplers_0")(x, *upsample_to)
        return x, entering


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
    x, skips = _way_down(config, x, time, context, intrablock, config.skip_connections)
    last = len(config.block_out_channels) - 1
    return MidBlock(config, last, True, name="mid_block")(x, time, context), skips


def _way_down(
    config: UNetConfig,
    x: Float[Array, "b h w c"],
    time: Float[Array, "b t"],
    context: Context,
    intrablock: tuple[Array, ...],
    count: int,
) -> tuple[Float[Array, "b i j d"], list[Array]]:
    """The first `count` of the features kept for the way up, `x` first, and the last of them."""
    skips = [x]
    for level, kind in enumerate(config.down_block_types):
        if len(skips) == count:
            break
        block = DownBlock(config, level, DOWN_ATTENTION[kind], name=f"down_blocks_{level}")
        x, kept = block(x, time, context, intrablock[level] if intrablock else None, count - len(skips))
        skips.extend(kept)
    return x, skips


def _way_up(
    config: UNetConfig, x: Float[Array, "b h w c"], skips: list[Array], time: Float[Array, "b t"], context: Context
) -> tuple[Float[Array, "b i j d"], list[Array]]:
    """The layers that take `skips`, the first of those kept on the way down, last one first.

    Args:
      x: what goes into the first of these layers.

    Returns:
      what the last layer gives, and what went into each, in the order of `skips`.
    """
    levels, start, entering = len(config.block_out_channels), config.skip_connections, list[Array]()
    for index, kind in enumerate(config.up_block_types):
        level = levels - 1 - index
        end, start = start, start - config.per_level("layers_per_block")[level] - 1
        if start < len(skips):
            block = UpBlock(config, level, UP_ATTENTION[kind], name=f"up_blocks_{index}")
            upsample_to = skips[start - 1].shape[1:3] if start else None
            x, entered = block(x, skips[start:end][::-1], time, context, upsample_to)
            entering.extend(entered)
    return x, entering[::-1]


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
        branch: int | None = None,
        deep: Float[Array, "b i j d"] | None = None,
    ) -> Float[Array, "b h w o"] | tuple[Float[Array, "b h w o"], Float[Array, "b i j d"]]:
        """The prediction; with a `branch` also the deep features there.

        Args:
          sample: latents as the network expects them, extra channels appended.
          timesteps: of each.
          context: the text encoder's hidden states, attended to where `context_mask` is True.
          class_labels: only where the config asks for them.
          context_mask: None is all.
          residuals: of ControlNets and T2I adapters.
          branch: a skip connection, from 0 (that of `conv_in`) to `config.skip_connections` - 1. Deep features are what
            the layer that takes it is given from below (Ma et al. 2023, arXiv:2312.00858, section 3.2).
          deep: deep features of another evaluation: only what is above them is computed.

        Raises:
          ValueError: if class labels are missing, or given to a network that takes none; if residuals are of a
            network for another UNet.
        """
        cfg = self.config
        levels, count = len(cfg.block_out_channels), cfg.skip_connections
        time = embedded_time(cfg, timesteps, class_labels).astype(sample.dtype)

        attended = Context(context, context_mask)
        down, mid, intrablock = residuals or Residuals()
        if intrablock and len(intrablock) not in (levels, levels + 1):
            raise ValueError(f"{len(intrablock)} intrablock residuals for a UNet of {levels} levels")
        if down and len(down) != count:
            raise ValueError(f"{len(down)} down residuals for a UNet that keeps {count} features")

        x = Conv(cfg.block_out_channels[0], (3, 3), name="conv_in")(sample)
        if deep is None:
            x, skips = descend(cfg, x, time, attended, intrablock)
            if len(intrablock) > levels and intrablock[-1].shape == x.shape:
                x = x + intrablock[-1]
            if mid is not None:
                x = _plus(x, mid, "the middle residual")
        else:
            assert branch is not None, "deep features are those of a branch"
            _, skips = _way_down(cfg, x, time, attended, intrablock, branch + 1)
            x = deep
        if down:
            pairs = enumerate(zip(skips, down, strict=False))
            skips = [_plus(skip, each, f"down residual {index}") for index, (skip, each) in pairs]
        x, entering = _way_up(cfg, x, skips, time, attended)
        norm = nn.GroupNorm(cfg.norm_num_groups, epsilon=cfg.norm_eps, use_fast_variance=False, name="conv_norm_out")
        prediction = Conv(cfg.out_channels, (3, 3), name="conv_out")(jax.nn.silu(norm(x)))
        return prediction if branch is None else (prediction, entering[branch])
