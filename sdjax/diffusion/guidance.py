"""What is done with the network's output: parametrisation, and guidance between two of them."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def classifier_free(
    unconditional: Float[Array, "b h w c"], conditional: Float[Array, "b h w c"], scale: Float[Array, "b 1 1 1"]
) -> Float[Array, "b h w c"]:
    """Ho and Salimans 2022 (arXiv:2207.12598), in the form of Imagen: 0 unconditional, 1 conditional."""
    return unconditional + scale * (conditional - unconditional)


def network_input(latents: Float[Array, "b h w c"], sigma: Float[Array, "b 1 1 1"]) -> Float[Array, "b h w c"]:
    """Latents at level sigma, brought to the variance at which the network was trained."""
    return latents / jnp.sqrt(sigma**2 + 1)


def denoised(
    prediction: Float[Array, "b h w c"],
    latents: Float[Array, "b h w c"],
    sigma: Float[Array, "b 1 1 1"],
    prediction_type: str,
) -> Float[Array, "b h w c"]:
    """The clean latents which a prediction means.

    `epsilon` is the noise (Ho et al. 2020); `v_prediction` is alpha * noise - sigma * x0 on the unit circle
    (Salimans and Ho 2022, arXiv:2202.00512, appendix D).
    """
    if prediction_type == "epsilon":
        return latents - sigma * prediction
    if prediction_type == "v_prediction":
        return latents / (sigma**2 + 1) - prediction * sigma / jnp.sqrt(sigma**2 + 1)
    raise ValueError(f"prediction_type {prediction_type!r} is neither epsilon nor v_prediction")
