"""ControlNets and T2I adapters: what a plan says of them, and their parameters."""

from pathlib import Path
from typing import NamedTuple

from jaxtyping import DTypeLike

from sdjax.checkpoints.controlnet_file import ControlConfig, find_controlnet, load_control
from sdjax.checkpoints.tensors import CheckpointError, Params
from sdjax.models import UNetConfig, VAEConfig
from sdjax.models.t2i_adapter import T2IAdapterConfig

# Channels that a control image may have.
_CHANNELS = (1, 3)


class ControlNetFile(NamedTuple):
    """A ControlNet or a T2I adapter, without its parameters.

    digest: sha256 of its files.
    path: of its file or folder.
    """

    name: str
    config: ControlConfig
    digest: str
    path: Path


def read_controlnet(path: Path, name: str, unet: UNetConfig, vae: VAEConfig, pickled: bool) -> ControlNetFile:
    """What is to be known of a ControlNet before it runs; its files are hashed, and no parameter is read.

    Args:
      path: as `find_controlnet` takes it.
      name: by which jobs call it.
      unet, vae: of the model that it is to steer.
      pickled: whether pickled files are read.

    Raises:
      CheckpointError: if it is none, is not whole, or is for another model.
      ConfigError: if its config asks for what is not implemented.
    """
    found = find_controlnet(path, pickled=pickled)
    found.config.check_fits(unet)
    channels, factor = _control_image(found.config)
    if channels not in _CHANNELS:
        raise CheckpointError(f"{path} wants control images of {channels} channels; expected 1 or 3")
    if factor != vae.factor:
        raise CheckpointError(
            f"{path} has {factor} pixels to a latent, the model's VAE {vae.factor}: it is for another model"
        )
    return ControlNetFile(name, found.config, found.digest(), path)


def load_controlnet(file: ControlNetFile, dtype: DTypeLike, pickled: bool) -> tuple[Params, str]:
    """The parameters, arrays of numpy, and the digest of the files that they were read from; errors as above."""
    return load_control(find_controlnet(file.path, pickled=pickled), dtype)


def _control_image(config: ControlConfig) -> tuple[int, int]:
    """The channels of a network's control image, and how many of its pixels, along one side, make a latent."""
    if isinstance(config, T2IAdapterConfig):
        return config.in_channels, config.downscale_factor
    return config.conditioning_channels, config.factor
