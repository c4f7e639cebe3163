"""The networks: pure functions of (parameters, arrays), with configs read from checkpoints."""

from sdjax.models.clip import TextEncoder, TextEncoderConfig, TextEncoding
from sdjax.models.config import ConfigError
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from sdjax.models.vae import VAE, Gaussian, VAEConfig

__all__ = [
    "VAE", "ConfigError", "Gaussian", "TextEncoder", "TextEncoderConfig", "TextEncoding", "UNet", "UNetConfig",
    "VAEConfig",
]  # fmt: skip
