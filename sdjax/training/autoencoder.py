"""Training of the VAE: reconstruction in pixels and in edges, with a light pull to the unit normal."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sdjax.models import VAE
from sdjax.training.state import Params


def _edges(x: Float[Array, "b h w c"]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Differences of neighbouring pixels, down and across."""
    return x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Means of 2x2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def reconstruction_loss(
    output: Float[Array, "b h w c"], target: Float[Array, "b h w c"], scales: int = 3
) -> Float[Array, ""]:
    """Mean absolute error of pixels plus that of edges, over a pyramid of `scales` sizes."""
    total = jnp.zeros(())
    for _ in range(scales):
        total += jnp.abs(output - target).mean()
        for ours, theirs in zip(_edges(output), _edges(target), strict=True):
            total += jnp.abs(ours - theirs).mean()
        output, target = _halved(output), _halved(target)
    return total


def vae_loss(
    vae: VAE, params: Params, pixels: UInt8[Array, "b h w 3"], key: Array, kl_weight: float
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss of a batch of images, and what it is made of."""
    target = pixels.astype(jnp.float32) / 127.5 - 1
    cfg = vae.config
    shape = (
        pixels.shape[0],
        pixels.shape[1] // cfg.factor,
        pixels.shape[2] // cfg.factor,
        cfg.latent_channels,
    )
    output, posterior = vae.apply({"params": params}, target, jax.random.normal(key, shape))
    mean, logvar = posterior
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
    reconstruction = reconstruction_loss(output, target)
    error = jnp.abs(output - target).mean()
    return reconstruction + kl_weight * kl, {"error": error, "kl": kl, "std": jnp.exp(0.5 * logvar).mean()}


# The half of the VAE that only decoding uses.
DECODER = ("post_quant_conv", "decoder")


def decoder_loss(
    vae: VAE,
    params: Params,
    latents: Float[Array, "b h w c"],
    pixels: UInt8[Array, "b i j 3"],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss of reconstruction alone, from latents that were encoded before; `params` are those of `DECODER`."""
    target = pixels.astype(jnp.float32) / 127.5 - 1
    output = vae.apply({"params": params}, latents, method="decode")
    return reconstruction_loss(output, target), {"error": jnp.abs(output - target).mean()}


def latent_scale(means: Float[np.ndarray, "n h w c"]) -> float:
    """The factor that brings latents to unit variance (about their overall mean)."""
    return float(1.0 / means.std())
