"""Stable Diffusion's x2 upscaler of latents.

Its UNet is preconditioned as in Karras et al. 2022 (arXiv:2206.00364, table 1) for data of deviation 1: it gives F of
(latents / sqrt(sigma^2 + 1), ln(sigma) / 4), and latents / (sigma^2 + 1) + F * sigma / sqrt(sigma^2 + 1) are the
denoised latents. It sees the latents to be upscaled as they are, each four times, and is given 64 ones, 64 zeros
(cosines and sines of how noisy they are: not at all) and the text encoder's last state at the end of the prompt.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.diffusion import elementary
from sdjax.diffusion.tableau import Table
from sdjax.families.family import (
    Configs,
    Family,
    FolderLayout,
    Networks,
    Pipeline,
    TextStates,
    Tokens,
    UNetInputs,
    first_mismatch,
)
from sdjax.families.network import floats
from sdjax.families.networks import UNET_2D_CONDITION_MODEL
from sdjax.families.stable_diffusion import NETWORKS, TEXT_NETWORKS
from sdjax.families.x4_upscaler import UNUSED_PARTS
from sdjax.models.latent_upscaler import LatentUpscalerConfig, LatentUpscalerUNet

# What of the condition is not the prompt: how noisy the latents to be upscaled are.
NOISE_FEATURES = 128


def encode_text(networks: Networks, tokens: Tokens) -> TextStates:
    """The states before the final norm, on which it was trained as published; and the last one where the text ends."""
    states = networks.apply("text_encoder", tokens.ids)
    ends = jnp.argmax(tokens.ids == tokens.end, axis=-1)[:, None, None]
    return TextStates(states.hidden_states[-1], jnp.take_along_axis(states.last_hidden_state, ends, axis=1)[:, 0])


def predict(networks: Networks, inputs: UNetInputs, residuals: Any) -> Float[Array, "q h w c"]:
    """The prediction as Salimans and Ho's v, which is F with the other sign."""
    context, _, pooled = inputs.conditioning
    assert pooled is not None and residuals is None, "plans have no ControlNets here"
    not_noisy = jnp.repeat(jnp.array([1, 0], pooled.dtype), NOISE_FEATURES // 2)
    condition = jnp.concatenate([jnp.tile(not_noisy[None], (len(pooled), 1)), pooled], axis=-1)
    predicted: Array = networks.apply("unet", inputs.latents, inputs.timesteps, context, condition)
    return -predicted[..., :-1]  # the last channel is a variance, which is not used


def table(steps: Table) -> Table:
    """A sampler's table with the times that this UNet is told: ln(sigma) / 4."""
    return steps._replace(timestep=elementary.log(steps.sigma) / 4)


def mismatch(configs: Configs) -> str | None:
    """Why networks can't upscale latents together; None if they can."""
    unet, vae = configs["unet"], configs["vae"]
    latents, width = vae.latent_channels, configs[TEXT_NETWORKS[0]].hidden_size
    values: dict[str, tuple[Any, Any]] = {
        "the VAE's in_channels": (vae.in_channels, 3),
        "the VAE's out_channels": (vae.out_channels, 3),
        "the UNet's in_channels": (unet.in_channels, 2 * latents),
        # One for the variance, which is not used.
        "the UNet's out_channels": (unet.out_channels, latents + 1),
        "the UNet's cross_attention_dim": (unet.cross_attention_dim, width),
        "the UNet's time_cond_proj_dim": (unet.time_cond_proj_dim, NOISE_FEATURES + width),
    }
    return first_mismatch(values, "of an upscaler")


def _unet_inputs(config: LatentUpscalerConfig) -> tuple[Any, ...]:
    sample = floats(1, config.factor, config.factor, config.in_channels)
    return sample, floats(1), floats(1, 2, config.cross_attention_dim), floats(1, config.time_cond_proj_dim)


LATENT_UPSCALER_UNET = UNET_2D_CONDITION_MODEL._replace(
    module=LatentUpscalerUNet, read_config=LatentUpscalerConfig.from_json, inputs=_unet_inputs
)
LATENT_UPSCALER = Family(
    "Stable Diffusion x2 latent upscaler",
    {**NETWORKS, "unet": LATENT_UPSCALER_UNET},
    TEXT_NETWORKS,
    encode_text,
    predict,
    FolderLayout((Pipeline("StableDiffusionLatentUpscalePipeline"),), UNUSED_PARTS),
    mismatch,
    table=table,
    conditioned_on="latents",
    upscales=2,
    prediction_type="v_prediction",
)
