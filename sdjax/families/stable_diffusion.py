"""Stable Diffusion 1 and 2 (Rombach et al. 2022, arXiv:2112.10752): one text encoder, a UNet, a VAE.

They differ in the text encoder (CLIP ViT-L/14; OpenCLIP ViT-H/14 without its last layer) and in the UNet's heads, all
of which their configs say. Inpainting and depth UNets see more channels beside the latents.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.families.family import Family, Networks, TextStates, Tokens, UNetInputs
from sdjax.text.prompt_tokenizer import FIRST_VECTOR


def encode_text(networks: Networks, tokens: Tokens) -> TextStates:
    """The text encoder's last hidden state, after its final norm."""
    ids = tokens.ids
    if tokens.vectors is not None:
        ids = jnp.where(ids < FIRST_VECTOR, ids, ids - FIRST_VECTOR + networks.config("text_encoder").vocab_size)
    states = networks.apply("text_encoder", ids, tokens.mask, tokens.clip_skip, tokens.vectors)
    return TextStates(states.last_hidden_state, None)


def predict(networks: Networks, inputs: UNetInputs, residuals: Any) -> Float[Array, "q h w c"]:
    """The UNet's prediction."""
    labels = inputs.class_labels
    if labels is not None and networks.config("unet").class_embed_type == "timestep":
        labels = labels.astype(jnp.float32)
    context, mask, _ = inputs.conditioning
    prediction: Array = networks.apply("unet", inputs.latents, inputs.timesteps, context, labels, mask, residuals)
    return prediction


SD1 = Family("Stable Diffusion 1", ("text_encoder",), encode_text, predict)
SD2 = Family("Stable Diffusion 2", ("text_encoder",), encode_text, predict)
