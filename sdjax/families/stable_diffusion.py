"""Stable Diffusion 1 and 2 (Rombach et al. 2022, arXiv:2112.10752): one text encoder, a UNet, a VAE.

They differ in the text encoder (CLIP ViT-L/14; OpenCLIP ViT-H/14 without its last layer) and in the UNet's heads, all
of which their configs say. Inpainting and depth UNets see more channels beside the latents.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.families.family import Family, Networks, TextStates, Tokens, UNetInputs
from sdjax.models import VAE, TextEncoder, UNet
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


NETWORKS: Mapping[str, type[nn.Module]] = {"text_encoder": TextEncoder, "unet": UNet, "vae": VAE}
TEXT_NETWORKS = ("text_encoder",)
SD1 = Family("Stable Diffusion 1", NETWORKS, TEXT_NETWORKS, encode_text, predict)
SD2 = Family("Stable Diffusion 2", NETWORKS, TEXT_NETWORKS, encode_text, predict)

# What stands before a module's own name in LoRA files, which is taken off until none is left; and the network that it
# says, or None where the name itself must tell.
LORA_PREFIXES = (
    ("base_model.model.", None),
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lycoris_", None),
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("diffusion_model_", "unet"),
    ("cond_stage_model.transformer.", "text_encoder"),
    ("cond_stage_model.", "text_encoder"),
    # ComfyUI, of Stable Diffusion 1 and 2.
    ("text_encoders.", None),
    ("clip_l.transformer.", "text_encoder"),
    ("clip_h.transformer.", "text_encoder"),
)
# Modules that have no say in images: ComfyUI writes them with all others.
LORA_UNUSED = frozenset({("text_encoder", "text_projection")})
