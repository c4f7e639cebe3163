"""The variants of Stable Diffusion 1 and 2: what tells them apart, and what they are called."""

from sdjax.checkpoints.stored_tensor import CheckpointError
from sdjax.families.known_models import UNET_PURPOSES, context_width_of
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig

# What a UNet sees beside the latents: nothing; a mask and the masked picture's latents; a depth map.
INPAINTING, DEPTH = 5, 1
# diffusers' pipeline of each, for writing.
PIPELINES = {
    0: "StableDiffusionPipeline",
    INPAINTING: "StableDiffusionInpaintPipeline",
    DEPTH: "StableDiffusionDepth2ImgPipeline",
}


def extra_channels(unet: UNetConfig, vae: VAEConfig) -> int:
    """How many channels a UNet sees beside the latents."""
    return unet.in_channels - vae.latent_channels


def check_fit(where: str, text_encoder: TextEncoderConfig, unet: UNetConfig, vae: VAEConfig) -> None:
    """Raises `CheckpointError` if the three networks can't make pictures together."""
    for name, found, expected in (
        ("the UNet's cross_attention_dim", set(unet.per_level("cross_attention_dim")), {text_encoder.hidden_size}),
        ("the UNet's out_channels", unet.out_channels, vae.latent_channels),
        ("the VAE's in_channels", vae.in_channels, 3),
        ("the VAE's out_channels", vae.out_channels, 3),
    ):
        if found != expected:
            raise CheckpointError(f"{where}: {name} is {found}, expected {expected} for text to image")
    if extra_channels(unet, vae) not in PIPELINES:
        purpose = f"; it is that of {UNET_PURPOSES[unet.in_channels]}" if unet.in_channels in UNET_PURPOSES else ""
        known = ", ".join(str(vae.latent_channels + extra) for extra in PIPELINES)
        raise CheckpointError(
            f"{where}: the UNet's in_channels is {unet.in_channels}{purpose}. "
            f"Expected one of {known}: text to image, inpainting, depth to image"
        )
    if unet.class_embed_type in ("identity", "projection"):
        raise CheckpointError(
            f"{where}: the UNet's class_embed_type is {unet.class_embed_type!r}: it takes a vector for each picture "
            "(unCLIP's of another picture), which text to image has not"
        )


def family(unet: UNetConfig) -> int:
    """1 or 2: the projections of the UNet's transformers are convolutions in Stable Diffusion 1, linear in 2."""
    return 2 if unet.use_linear_projection else 1


def variant_name(unet: UNetConfig, vae: VAEConfig, prediction_type: str) -> str:
    """What a checkpoint is: "Stable Diffusion 2, depth to image, predicts v_prediction".

    "of another size" is said of one that has the structure and not the published width.
    """
    number = family(unet)
    width = unet.per_level("cross_attention_dim")[0]
    size = "" if width == context_width_of(f"Stable Diffusion {number}") else " of another size"
    purposes = {0: "", INPAINTING: ", inpainting", DEPTH: ", depth to image"}
    purpose = purposes.get(extra_channels(unet, vae), "")
    classes = ", class labels" if unet.has_class_embedding else ""
    return f"Stable Diffusion {number}{size}{purpose}{classes}, predicts {prediction_type}"
