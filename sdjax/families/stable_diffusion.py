"""Stable Diffusion 1 and 2 (Rombach et al. 2022, arXiv:2112.10752): one text encoder, a UNet, a VAE.

They differ in the text encoder (CLIP ViT-L/14; OpenCLIP ViT-H/14 without its last layer) and in the UNet's heads, all
of which their configs say. Inpainting and depth UNets see more channels beside the latents.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

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
from sdjax.families.known_models import UNET_PURPOSES, context_width_of
from sdjax.families.network import Network
from sdjax.families.networks import AUTOENCODER_KL, CLIP_TEXT_MODEL, UNET_2D_CONDITION_MODEL
from sdjax.models import UNetConfig, VAEConfig
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


# --- What a UNet is for ---

# By how many channels it sees beside the latents: none; a mask and the masked image's latents; a depth map.
INPAINTING, DEPTH = 5, 1
# What diffusers' pipelines set, whatever the scheduler's file says.
_SCHEDULER = {"steps_offset": 1}
# diffusers' pipeline of each.
PIPELINES = {
    0: Pipeline("StableDiffusionPipeline", _SCHEDULER, clips=False),
    INPAINTING: Pipeline("StableDiffusionInpaintPipeline", {**_SCHEDULER, "skip_prk_steps": True}, clips=False),
    DEPTH: Pipeline("StableDiffusionDepth2ImgPipeline", _SCHEDULER, clips=False),
}
_IMG2IMG = Pipeline("StableDiffusionImg2ImgPipeline", _SCHEDULER, clips=False)
_PURPOSES = {0: "", INPAINTING: ", inpainting", DEPTH: ", depth to image"}
# The parts that are not there, said as diffusers says it. It takes a depth estimator only from its caller then.
_NO_DEPTH_ESTIMATOR = {"depth_estimator": [None, None]}
_NO_OTHER_PARTS = {"image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}


def extra_channels(unet: UNetConfig, vae: VAEConfig) -> int:
    """How many channels a UNet sees beside the latents."""
    return unet.in_channels - vae.latent_channels


def mismatch(configs: Configs) -> str | None:
    """Why networks can't make images of text together; None if they can."""
    unet, vae = configs["unet"], configs["vae"]
    text = configs[TEXT_NETWORKS[0]]
    values: dict[str, tuple[Any, Any]] = {
        "the UNet's cross_attention_dim": (set(unet.per_level("cross_attention_dim")), {text.hidden_size}),
        "the UNet's out_channels": (unet.out_channels, vae.latent_channels),
        "the VAE's in_channels": (vae.in_channels, 3),
        "the VAE's out_channels": (vae.out_channels, 3),
    }
    if problem := first_mismatch(values, "for text to image"):
        return problem
    if extra_channels(unet, vae) not in PIPELINES:
        purpose = f"; it is that of {UNET_PURPOSES[unet.in_channels]}" if unet.in_channels in UNET_PURPOSES else ""
        known = ", ".join(str(vae.latent_channels + extra) for extra in PIPELINES)
        return (
            f"the UNet's in_channels is {unet.in_channels}{purpose}. "
            f"Expected one of {known}: text to image, inpainting, depth to image"
        )
    if unet.class_embed_type in ("identity", "projection"):
        return (
            f"the UNet's class_embed_type is {unet.class_embed_type!r}: it takes a vector for each image "
            "(unCLIP's of another image), which text to image has not"
        )
    return None


def model_index(configs: Configs) -> dict[str, Any]:
    """What `model_index.json` says besides the parts that are there."""
    extra = extra_channels(configs["unet"], configs["vae"])
    absent = _NO_DEPTH_ESTIMATOR if extra == DEPTH else _NO_OTHER_PARTS
    return {"_class_name": PIPELINES[extra].name, "feature_extractor": [None, None], **absent}


def describe(configs: Configs, prediction_type: str) -> str:
    """What a checkpoint is: "Stable Diffusion 2, depth to image, predicts v_prediction".

    "of another size" is said of one that has the structure and not the published width.
    """
    unet = configs["unet"]
    name = (SD2 if SD2.is_of(configs) else SD1).name
    size = "" if unet.per_level("cross_attention_dim")[0] == context_width_of(name) else " of another size"
    purpose = _PURPOSES.get(extra_channels(unet, configs["vae"]), "")
    classes = ", class labels" if unet.has_class_embedding else ""
    return f"{name}{size}{purpose}{classes}, predicts {prediction_type}"


# --- The families ---

NETWORKS: Mapping[str, Network] = {
    "text_encoder": CLIP_TEXT_MODEL,
    "unet": UNET_2D_CONDITION_MODEL,
    "vae": AUTOENCODER_KL,
}
TEXT_NETWORKS = ("text_encoder",)
_FOLDER = FolderLayout(
    (*PIPELINES.values(), _IMG2IMG),
    # The last is not there without its own checkpoint's estimator.
    frozenset({"safety_checker", "feature_extractor", "image_encoder", "depth_estimator"}),
    model_index=model_index,
)
SD1 = Family(
    "Stable Diffusion 1",
    NETWORKS,
    TEXT_NETWORKS,
    encode_text,
    predict,
    _FOLDER,
    mismatch,
    # The projections of the UNet's transformers are convolutions, in Stable Diffusion 2 linear.
    is_of=lambda configs: not configs["unet"].use_linear_projection,
    describe=describe,
)
SD2 = SD1._replace(name="Stable Diffusion 2", is_of=lambda configs: configs["unet"].use_linear_projection)

# --- LoRAs ---

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
