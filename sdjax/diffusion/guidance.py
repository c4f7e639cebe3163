"""What is done with the network's outputs: parametrisation, and guidance of several kinds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Latents = Float[Array, "b h w c"]
# (latents of unit variance, timesteps, labels, parameters) -> log p(label | latents) of each image.
LogProbability = Callable[[Latents, Float[Array, " b"], Int[Array, " b"], object], Float[Array, " b"]]


def _wide(values: Float[Array, " b"]) -> Float[Array, "b 1 1 1"]:
    return values[:, None, None, None]


def classifier_free(
    unconditional: Latents,
    conditional: Float[Array, "p b h w c"],
    weights: Float[Array, "p b"],
    scale: Float[Array, " b"],
) -> Latents:
    """Guidance away from one prediction and towards others.

    With one of weight 1 that is Ho and Salimans 2022 (arXiv:2207.12598), in the form of Imagen: scale 0 is
    unconditional, 1 conditional. With several it is the conjunction of Liu et al. 2022 (arXiv:2206.01714), which A1111
    calls AND.
    """
    total = unconditional
    for part, weight in zip(conditional, weights, strict=True):
        total = total + _wide(scale * weight) * (part - unconditional)
    return total


def rescaled(guided: Latents, conditional: Latents, share: Float[Array, " b"]) -> Latents:
    """Brings the deviation of a guided prediction back to that of the conditional one, by a share of 0 to 1.

    Lin et al. 2023 (arXiv:2305.08891), equations 15 and 16; `guidance_rescale` of diffusers.
    """

    def variance(values: Latents) -> Float[Array, "b 1 1 1"]:
        return jnp.var(values, axis=(1, 2, 3), keepdims=True)

    matched = guided * jnp.sqrt(variance(conditional) / variance(guided))
    result = _wide(share) * matched + _wide(1 - share) * guided
    return jnp.where(_wide(share) > 0, result, guided)


def thresholded(denoised: Latents, ratio: Float[Array, " b"], most: Float[Array, " b"]) -> Latents:
    """Dynamic thresholding: values beyond a quantile are cut, and all divided by it.

    Saharia et al. 2022 (arXiv:2205.11487), section 2.3, as in diffusers. Images of ratio 0 stay as they are.

    Args:
      denoised: the denoised latents.
      ratio: which quantile of the absolute values, 0 to 1.
      most: the quantile is taken for at least 1 and at most this.
    """

    def one(values: Float[Array, "h w c"], share: Array, limit: Array) -> Float[Array, "h w c"]:
        bound = jnp.clip(jnp.quantile(jnp.abs(values), share), 1, limit)
        return jnp.where(share > 0, jnp.clip(values, -bound, bound) / bound, values)

    def all_of_them(values: Latents) -> Latents:
        return jax.vmap(one)(values, ratio, most)

    return jax.lax.cond(jnp.any(ratio > 0), all_of_them, lambda values: values, denoised)


def classifier_guided(
    denoised: Latents,
    latents: Latents,
    sigma: Float[Array, " b"],
    alpha: Float[Array, " b"],
    timesteps: Float[Array, " b"],
    labels: Int[Array, " b"],
    scale: Float[Array, " b"],
    log_probability: LogProbability,
    params: object,
) -> Latents:
    """Guidance by the gradient of a classifier of noisy latents.

    Dhariwal and Nichol 2021 (arXiv:2105.05233), algorithm 2: the score gets `scale` times the gradient of the log
    probability; and the denoised latents are the noisy ones plus sigma squared times the score.
    """

    def total(noisy: Latents) -> Array:
        return log_probability(network_input(noisy, alpha), timesteps, labels, params).sum()

    return denoised + _wide(scale * sigma**2) * jax.grad(total)(latents)


def network_input(latents: Latents, alpha: Float[Array, " b"]) -> Latents:
    """Latents at sigma scaled to unit variance, as the network was trained on; `alpha` is 1 / sqrt(1 + sigma^2)."""
    return latents * _wide(alpha)


def to_denoised(
    prediction: Latents,
    latents: Latents,
    sigma: Float[Array, " b"],
    alpha: Float[Array, " b"],
    prediction_type: str,
) -> Latents:
    """The denoised latents that a prediction stands for.

    `epsilon` is the noise (Ho et al. 2020); `v_prediction` is alpha * noise - sigma * x0 on the unit circle
    (Salimans and Ho 2022, arXiv:2202.00512, appendix D); `sample` is the denoised latents themselves.
    """
    if prediction_type == "epsilon":
        return latents - _wide(sigma) * prediction
    if prediction_type == "v_prediction":
        return latents * _wide(alpha * alpha) - prediction * _wide(sigma * alpha)
    if prediction_type == "sample":
        return prediction
    raise ValueError(f"prediction_type {prediction_type!r} is none of epsilon, v_prediction and sample")
