"""A classifier of noisy latents, for guidance by its gradient (Dhariwal and Nichol 2021, arXiv:2105.05233)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.models.config import MOST_CHANNELS, MOST_SIDE, read_config, require_layers, require_positive
from sdjax.models.unet import TimestepEmbedding, sinusoidal_embedding


@dataclasses.dataclass(frozen=True)
class NoiseClassifierConfig:
    """Sizes of a `NoiseClassifier`.

    Attributes:
      in_channels: of the latents.
      labels: how many there are.
      sample_size: side of the latents on which it was trained.
      width: of its layers.
      layers: residual ones.
      time_channels: of the timestep's embedding.
    """

    in_channels: int
    labels: int
    sample_size: int = 8
    width: int = 320
    layers: int = 2
    time_channels: int = 64

    def __post_init__(self) -> None:
        require_positive(self, "in_channels", "labels", "width", "layers", "time_channels", most=MOST_CHANNELS)
        require_positive(self, "sample_size", most=MOST_SIDE)
        require_layers(self.layers, "layers")

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "config.json") -> "NoiseClassifierConfig":
        """Reads a config; raises `ConfigError` for what is not implemented."""
        return read_config(cls, data, fixed={}, where=where)


class _Adapted(nn.Module):
    """Features normalised, then scaled and moved as the timestep says (Perez et al. 2017, arXiv:1709.07871)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n"], time: Float[Array, "b t"]) -> Float[Array, "b n"]:
        y = nn.LayerNorm(use_fast_variance=False, name="norm")(x)
        scale, shift = jnp.split(nn.Dense(2 * x.shape[-1], name="time_emb_proj")(time), 2, axis=-1)
        return jax.nn.silu(y * (1 + scale) + shift)


class NoiseClassifier(nn.Module):
    """Noisy latents of unit variance and their timesteps to the logits of labels.

    Each layer sees the whole image at once. Where noise is strong, an image is known by how well it agrees with
    what is expected at every place; convolutions and a mean over the image afterwards lose that. Latents of another
    size are brought to the one on which it was trained. Everything is smooth, because its gradient is what is wanted.
    """

    config: NoiseClassifierConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "b h w c"], timesteps: Float[Array, " b"]) -> Float[Array, "b n"]:
        """Raises `ValueError` if the latents have another number of channels."""
        cfg = self.config
        batch, _, _, channels = latents.shape
        if channels != cfg.in_channels:
            raise ValueError(
                f"this classifier is for latents of {cfg.in_channels} channels, these have {channels}: it was made for "
                "another model"
            )
        sinusoids = sinusoidal_embedding(timesteps, cfg.time_channels, flip_sin_to_cos=True, freq_shift=0)
        time = jax.nn.silu(TimestepEmbedding(cfg.time_channels, name="time_embedding")(sinusoids))
        sized = jax.image.resize(latents, (batch, cfg.sample_size, cfg.sample_size, channels), "linear")
        x = nn.Dense(cfg.width, name="linear_in")(sized.reshape(batch, -1))
        for layer in range(cfg.layers):
            x = x + nn.Dense(cfg.width, name=f"linear_{layer}")(_Adapted(name=f"adapted_{layer}")(x, time))
        return nn.Dense(cfg.labels, name="linear_out")(_Adapted(name="adapted_out")(x, time))
