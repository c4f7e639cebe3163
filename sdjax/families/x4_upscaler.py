"""Stable Diffusion's x4 upscaler.

A UNet that sees the small image, with noise on it, beside latents of its height and width, and is given the noise's
level as a class label; its VAE decodes to four times that. Rombach et al. 2022 (arXiv:2112.10752), section 4.5; Ho et
al. 2021 (arXiv:2106.15282), section 4.2.
"""

from typing import Any

from sdjax.families.family import Configs, Family, FolderLayout, Pipeline, first_mismatch
from sdjax.families.stable_diffusion import NETWORKS, TEXT_NETWORKS, encode_text, predict

# Latents are scaled by this, whatever the VAE's config says; diffusers takes it so too.
SCALING_FACTOR = 0.08333
# Parts of upscalers' folders that are not used.
UNUSED_PARTS = frozenset({"safety_checker", "feature_extractor", "image_encoder", "watermarker"})
# Channels of the small image that the UNet sees beside the latents.
_IMAGE_CHANNELS = 3


def mismatch(configs: Configs) -> str | None:
    """Why networks can't upscale images together; None if they can."""
    unet, vae = configs["unet"], configs["vae"]
    values: dict[str, tuple[Any, Any]] = {
        "the VAE's in_channels": (vae.in_channels, _IMAGE_CHANNELS),
        "the VAE's out_channels": (vae.out_channels, _IMAGE_CHANNELS),
        "the UNet's in_channels": (unet.in_channels, vae.latent_channels + _IMAGE_CHANNELS),
        "the UNet's out_channels": (unet.out_channels, vae.latent_channels),
        "the UNet's cross_attention_dim": (
            set(unet.per_level("cross_attention_dim")),
            {configs[TEXT_NETWORKS[0]].hidden_size},
        ),
        "the UNet's class_embed_type": (unet.class_embed_type, None),
        "whether the UNet has num_class_embeds": (unet.num_class_embeds is not None, True),
    }
    return first_mismatch(values, "of an upscaler")


X4_UPSCALER = Family(
    "Stable Diffusion x4 upscaler",
    NETWORKS,
    TEXT_NETWORKS,
    encode_text,
    predict,
    FolderLayout(
        (Pipeline("StableDiffusionUpscalePipeline"),),
        UNUSED_PARTS,
        extra_folders=("low_res_scheduler",),
        overrides={"vae": {"scaling_factor": SCALING_FACTOR}},
    ),
    mismatch,
    conditioned_on="image",
    upscales=4,
)
