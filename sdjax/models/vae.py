"""The variational autoencoder between pixels and latents (diffusers' `AutoencoderKL`).

Kingma and Welling 2014, arXiv:1312.6114; Rombach et al. 2022, arXiv:2112.10752.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.models.attention import Attention
from sdjax.models.config import (
    MOST_CHANNELS,
    read_config,
    require,
    require_layers,
    require_levels,
    require_positive,
    require_sample_size,
)
from sdjax.models.convolution import Conv
from sdjax.models.resnet import Downsample, ResnetBlock, Upsample

# Of all its group norms.
EPS = 1e-6

_FIXED = {
    "act_fn": frozenset({"silu", "swish"}),
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """`vae/config.json`."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        require_levels(self, "block_out_channels", "down_block_types", "up_block_types")
        require_positive(
            self, "in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels",
            "norm_num_groups", "scaling_factor", most=MOST_CHANNELS,
        )  # fmt: skip
        require_sample_size(self.sample_size)
        require_layers(self.layers, "block_out_channels", "layers_per_block")
        require(
            self.down_block_types == ("DownEncoderBlock2D",) * levels,
            f"down_block_types = {self.down_block_types} is not DownEncoderBlock2D at each of {levels} levels",
        )
        require(
            self.up_block_types == ("UpDecoderBlock2D",) * levels,
            f"up_block_types = {self.up_block_types} is not UpDecoderBlock2D at each of {levels} levels",
        )
        require(
            all(channels % self.norm_num_groups == 0 for channels in self.block_out_channels),
            f"block_out_channels {self.block_out_channels} are not multiples of norm_num_groups {self.norm_num_groups}",
        )

    @property
    def layers(self) -> int:
        """Residual blocks of encoder and decoder."""
        return len(self.block_out_channels) * (2 * self.layers_per_block + 1) + 4

    @property
    def factor(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "vae/config.json") -> "VAEConfig":
        """Reads diffusers' config; raises `ConfigError` for what is not implemented."""
        return read_config(cls, data, fixed=_FIXED, where=where, classes=("AutoencoderKL",))


class Gaussian(NamedTuple):
    """A diagonal normal distribution over latents, as the encoder gives it (not yet scaled)."""

    mean: Float[Array, "b h w c"]
    logvar: Float[Array, "b h w c"]

    def sample(self, noise: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The mean moved by `noise` (standard normal) times the standard deviation."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


def gaussian(moments: Float[Array, "b h w d"]) -> Gaussian:
    """The distribution that the encoder's result stands for; log variance clipped to [-30, 20]."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return Gaussian(mean, jnp.clip(logvar, -30.0, 20.0))


class _PixelAttention(nn.Module):
    """One head over all pixels, added to its input."""

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        y = nn.GroupNorm(self.groups, epsilon=EPS, use_fast_variance=False, name="group_norm")(x)
        y = y.reshape(batch, height * width, channels)
        attention = Attention(heads=1, qkv_bias=True, name="attention")
        nn.share_scope(self, attention)  # diffusers keeps to_q, ... beside group_norm
        return x + attention(y).reshape(x.shape)


class _Level(nn.Module):
    """Residual blocks at one resolution, then a step down or up if asked for."""

    config: VAEConfig
    channels: int
    layers: int
    then: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        for index in range(self.layers):
            x = ResnetBlock(self.channels, self.config.norm_num_groups, EPS, name=f"resnets_{index}")(x)
        if self.then == "down":
            x = Downsample("after", name="downsamplers_0")(x)
        elif self.then == "up":
            x = Upsample(name="upsamplers_0")(x)
        return x


class Middle(nn.Module):
    """Two residual blocks, and attention between them, at the latents' resolution."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        cfg = self.config
        x = ResnetBlock(x.shape[-1], cfg.norm_num_groups, EPS, name="resnets_0")(x)
        if cfg.mid_block_add_attention:
            x = _PixelAttention(cfg.norm_num_groups, name="attentions_0")(x)
        return ResnetBlock(x.shape[-1], cfg.norm_num_groups, EPS, name="resnets_1")(x)


class Head(nn.Module):
    """The last group norm and the last convolution."""

    config: VAEConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        norm = nn.GroupNorm(self.config.norm_num_groups, epsilon=EPS, use_fast_variance=False, name="conv_norm_out")
        return Conv(self.channels, (3, 3), name="conv_out")(jax.nn.silu(norm(x)))


class Encoder(nn.Module):
    """Pixels in [-1, 1] to the features from which mean and log variance are taken."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b i j d"]:
        cfg = self.config
        levels = len(cfg.block_out_channels)
        x = Conv(cfg.block_out_channels[0], (3, 3), name="conv_in")(x)
        for index, channels in enumerate(cfg.block_out_channels):
            then = "down" if index < levels - 1 else None
            x = _Level(cfg, channels, cfg.layers_per_block, then, name=f"down_blocks_{index}")(x)
        x = Middle(cfg, name="mid_block")(x)
        head = Head(cfg, 2 * cfg.latent_channels)
        nn.share_scope(self, head)
        return head(x)


class Decoder(nn.Module):
    """Latents to pixels."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b i j d"]) -> Float[Array, "b h w 3"]:
        cfg = self.config
        levels = len(cfg.block_out_channels)
        x = Conv(cfg.block_out_channels[-1], (3, 3), name="conv_in")(x)
        x = Middle(cfg, name="mid_block")(x)
        for index, channels in enumerate(reversed(cfg.block_out_channels)):
            then = "up" if index < levels - 1 else None
            x = _Level(cfg, channels, cfg.layers_per_block + 1, then, name=f"up_blocks_{index}")(x)
        head = Head(cfg, cfg.out_channels)
        nn.share_scope(self, head)
        return head(x)


class VAE(nn.Module):
    """Encoder and decoder with their quant convolutions.

    Latents here are the network's own; the UNet works on latents times `config.scaling_factor`.
    """

    config: VAEConfig

    def setup(self) -> None:
        cfg = self.config
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        if cfg.use_quant_conv:
            self.quant_conv = Conv(2 * cfg.latent_channels, (1, 1))
        if cfg.use_post_quant_conv:
            self.post_quant_conv = Conv(cfg.latent_channels, (1, 1))

    def encode(self, pixels: Float[Array, "b h w 3"]) -> Gaussian:
        """Pixels in [-1, 1] to a distribution over latents; log variance clipped to [-30, 20]."""
        moments = self.encoder(pixels)
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        return gaussian(moments)

    def decode(self, latents: Float[Array, "b i j c"]) -> Float[Array, "b h w 3"]:
        """Latents to pixels, about [-1, 1], not clipped."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)

    def __call__(
        self, pixels: Float[Array, "b h w 3"], noise: Float[Array, "b i j c"]
    ) -> tuple[Float[Array, "b h w 3"], Gaussian]:
        """The reconstruction from sampled latents, and their distribution: what training needs."""
        posterior = self.encode(pixels)
        return self.decode(posterior.sample(noise)), posterior
