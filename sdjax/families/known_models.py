"""What tells models apart by their files: widths of text, channels of UNets, and names that only some have.

One table for all that identifies a file: checkpoints, ControlNets, adapters. Models that can't be used here are in it
too, so that an error can say what a file is.
"""

from typing import NamedTuple


class KnownModel(NamedTuple):
    """A model that files are made for.

    context_width: of the text that its UNet attends to.
    token_width: of the token embeddings of its (last) text encoder, and so of textual inversions.
    text_encoder: what that is called.
    text_layers: how many layers of it are used; None where that is all that it has.
    """

    name: str
    supported: bool
    context_width: int
    token_width: int
    text_encoder: str
    text_layers: int | None = None


KNOWN_MODELS = (
    KnownModel("Stable Diffusion 1", True, 768, 768, "CLIP ViT-L/14"),
    KnownModel("Stable Diffusion 2", True, 1024, 1024, "OpenCLIP ViT-H/14", text_layers=23),
    KnownModel("Stable Diffusion XL", False, 2048, 1280, "OpenCLIP ViT-bigG/14"),
    KnownModel("Stable Diffusion XL's refiner", False, 1280, 1280, "OpenCLIP ViT-bigG/14"),
)
# What UNets are for, by the channels that they see: latents of 4, and more.
UNET_PURPOSES = {
    4: "text to image",
    5: "depth to image",
    7: "upscaler (latents and a small image)",
    8: "InstructPix2Pix (latents and those of an image)",
    9: "inpainting",
}
# Patterns of whole names of LoRAs' modules that only other models have, and which.
FOREIGN_LORA_MODULES = (
    (r"(lora_te2_|text_encoder_2\.|(text_encoders\.)?clip_g\.).*", "Stable Diffusion XL (a second text encoder)"),
    (r".*(add_embedding|label_emb)[._].*", "Stable Diffusion XL (size conditioning)"),
    (r".*(double_blocks|single_blocks|single_transformer_blocks|joint_blocks)[._].*", "Flux or Stable Diffusion 3"),
    (
        r"(lora_te3_|text_encoder_3\.|(text_encoders\.)?t5\w*\.|lora_transformer_|transformer\.).*",
        "Flux, Stable Diffusion 3 or another transformer",
    ),
    (r".*motion_modules[._].*", "AnimateDiff (moving pictures)"),
)


def by_context_width(width: int | None) -> KnownModel | None:
    """The model whose UNet attends to text of this width."""
    return next((model for model in KNOWN_MODELS if model.context_width == width), None)


def by_token_width(width: int | None) -> KnownModel | None:
    """The model whose token embeddings are as wide; of several the first."""
    return next((model for model in KNOWN_MODELS if model.token_width == width), None)


def context_width_of(name: str) -> int:
    """The width of the text that the UNet of a known model attends to."""
    return next(model.context_width for model in KNOWN_MODELS if model.name == name)
