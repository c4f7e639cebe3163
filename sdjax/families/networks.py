"""The networks that several kinds of models share, as diffusers and transformers store them."""

from typing import Any

from sdjax.checkpoints.name_table import NameTable
from sdjax.families.network import Network, floats, integers
from sdjax.models import VAE, TextEncoder, TextEncoderConfig, UNet, UNetConfig, VAEConfig

CLIP_TEXT_MODEL = Network(
    TextEncoder,
    TextEncoderConfig.from_json,
    lambda config: (integers(1, 2),),
    "transformers",
    ("CLIPTextModel", "CLIPTextModelWithProjection"),
    {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
    NameTable(
        prefix="text_model.",
        other_prefixes=("",),
        renamed=(
            ("token_embedding.", "embeddings.token_embedding."),
            ("position_embedding.", "embeddings.position_embedding."),
            ("layers.", "encoder.layers."),
        ),
        ignored=(r"(text_model\.)?embeddings\.position_ids", r"text_projection\.weight"),
    ),
    "model",
)


def _unet_inputs(config: UNetConfig) -> tuple[Any, ...]:
    side = 2 ** (len(config.block_out_channels) - 1)
    context = floats(1, 2, config.per_level("cross_attention_dim")[0])
    return floats(1, side, side, config.in_channels), floats(1), context, _class_labels(config)


def _class_labels(config: UNetConfig) -> Any:
    """Labels of the kind a UNet takes, or None."""
    if not config.has_class_embedding:
        return None
    if config.class_embed_type == "identity":
        return floats(1, 4 * config.block_out_channels[0])
    if config.class_embed_type == "projection":
        return floats(1, config.projection_class_embeddings_input_dim or 0)
    return floats(1) if config.class_embed_type == "timestep" else integers(1)


UNET_2D_CONDITION_MODEL = Network(
    UNet,
    UNetConfig.from_json,
    _unet_inputs,
    "diffusers",
    ("UNet2DConditionModel",),
    {"_class_name": "UNet2DConditionModel"},
)


def _vae_inputs(config: VAEConfig) -> tuple[Any, ...]:
    side = config.factor
    return floats(1, side, side, config.in_channels), floats(1, 1, 1, config.latent_channels)


AUTOENCODER_KL = Network(
    VAE,
    VAEConfig.from_json,
    _vae_inputs,
    "diffusers",
    ("AutoencoderKL",),
    {"_class_name": "AutoencoderKL"},
    NameTable(
        aliases=(
            # diffusers before 0.12 wrote the VAE's attention so.
            (".to_q.", ".query."),
            (".to_k.", ".key."),
            (".to_v.", ".value."),
            (".to_out.0.", ".proj_attn."),
        ),
    ),
)
