"""What pictures are read and seen with: ControlNets, an estimator of depth and upscalers, by name, read once."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from sdjax.assets import bundled
from sdjax.checkpoints.controlnet_file import ControlConfig, find_controlnet, load_control
from sdjax.checkpoints.depth_file import find_depth
from sdjax.checkpoints.find_file import check_folder, find_file
from sdjax.checkpoints.tensors import CheckpointError, Params
from sdjax.depth import DepthModel, depth_of, depth_place, load_depth
from sdjax.job import MAX_CONTROLS, JobError
from sdjax.model import DTYPES
from sdjax.models import ConfigError, UNetConfig, VAEConfig
from sdjax.models.t2i_adapter import T2IAdapterConfig
from sdjax.pictures import Read, read_file
from sdjax.text.controls import Control
from sdjax.upscalers import ENDINGS, Upscalers

_TENSORS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
# Where a bundled model has its own.
_CONTROLS = "controlnets"


class Pictures(NamedTuple):
    """Where pictures come from, and what sees them.

    read: gives the bytes of a picture by its path, raising `OSError` or `ValueError` that says why it can't.
    controlnet_folder: of ControlNets and T2I adapters: files, and folders that diffusers wrote; "emoji" has those of
      the bundled model, None has none.
    depth_model: an estimator of depth, as `load_depth` takes it; None has none.
    upscaler_folder: of upscalers' files; None has none.
    pickled: whether pickled files (.pth, .pt, .ckpt, .bin) may be read, by a reader that runs nothing.
    """

    read: Read = read_file
    controlnet_folder: str | Path | None = None
    depth_model: str | Path | None = None
    upscaler_folder: str | Path | None = None
    pickled: bool = False


def check_files(pictures: Pictures, controls: Sequence[str] = (), upscalers: Sequence[str] = ()) -> None:
    """Finds out, reading no weights, whether folders are there, the estimator of depth, and files by their names.

    Args:
      pictures: where they are.
      controls: names of ControlNets and T2I adapters.
      upscalers: names of upscalers with weights.

    Raises:
      CheckpointError: if one is not, or not whole.
      ConfigError: if the estimator's config asks for what is not implemented.
    """
    for setting, named in (
        ("controlnet_folder", _controls_of(pictures.controlnet_folder)),
        ("upscaler_folder", pictures.upscaler_folder),
    ):
        if named is not None:
            check_folder(named, setting)
    if pictures.depth_model is not None:
        find_depth(depth_place(pictures.depth_model), pictures.pickled)
    for name in controls:
        find_file(_controls_of(pictures.controlnet_folder), name, _TENSORS, "ControlNet", "controlnet_folder")
    for name in upscalers:
        find_file(pictures.upscaler_folder, name, ENDINGS, "upscaler", "upscaler_folder")


def _controls_of(folder: str | Path | None) -> str | Path | None:
    return folder and (bundled(folder, _CONTROLS) or folder)


class KnownControl(NamedTuple):
    """A ControlNet or a T2I adapter, without its parameters.

    digest: sha256 of its files.
    """

    name: str
    config: ControlConfig
    digest: str


class _Loaded(NamedTuple):
    """The same, and its parameters, arrays of numpy."""

    known: KnownControl
    params: Params


def _sees(config: ControlConfig) -> tuple[int, int]:
    """The channels of a network's control picture, and how many of its pixels, along one side, make a latent."""
    if isinstance(config, T2IAdapterConfig):
        return config.in_channels, config.downscale_factor
    return config.conditioning_channels, config.factor


class PictureLibrary:
    """What a model's jobs name of `Pictures`; a file is read when it is first needed.

    Attributes:
      upscalers: those that jobs name.
    """

    def __init__(self, pictures: Pictures, unet: UNetConfig, vae: VAEConfig, dtype: str, vae_tile: int) -> None:
        """Reads nothing yet.

        Args:
          pictures: where all is.
          unet: of the model.
          vae: likewise.
          dtype: of the parameters of ControlNets, and of upscalers that are diffusion models.
          vae_tile: as of the engine.
        """
        self._pictures = pictures
        self._unet = unet
        self._factor = vae.factor
        self._dtype = dtype
        self._controls: dict[str, KnownControl] = {}
        # Of Stable Diffusion 1, each takes 1.4 GB in float32.
        self._loaded = functools.lru_cache(MAX_CONTROLS)(self._load_control)
        self.upscalers = Upscalers(
            pictures.upscaler_folder, pickled=pictures.pickled, vae=vae, dtype=dtype, vae_tile=vae_tile
        )

    @property
    def read(self) -> Read:
        """Gives the bytes of a picture."""
        return self._pictures.read

    @functools.cached_property
    def depth(self) -> DepthModel | None:
        """The estimator of depth, if there is one; errors are those of `load_depth`."""
        named = self._pictures.depth_model
        return None if named is None else load_depth(named, pickled=self._pictures.pickled)

    def estimate(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "i j"]:
        """How near each place of a picture is, on no scale.

        Raises:
          JobError: if nothing estimates it, or not of this picture.
        """
        if self.depth is None:
            raise JobError("depth is to be estimated: set depth_model, or give a depth_image")
        try:
            return depth_of(self.depth, pixels)
        except ValueError as error:
            raise JobError(str(error)) from error

    def controls(self, named: Sequence[Control]) -> tuple[KnownControl, ...]:
        """The ControlNets that a job names.

        Raises:
          JobError: if one is not there, can't be read, or is for another model.
        """
        for control in named:
            if control.name not in self._controls:
                self._controls[control.name] = self._loaded(control.name).known
        return tuple(self._controls[control.name] for control in named)

    def control_params(self, control: KnownControl) -> Params:
        """The parameters of a ControlNet, of which those of as many as a job can name are kept.

        Raises:
          JobError: if its files are gone, or others by now.
        """
        loaded = self._loaded(control.name)
        if loaded.known.digest != control.digest:
            self._controls.pop(control.name, None)  # for what comes after this run
            raise JobError(f"controlnets: {control.name}: its file has changed since the run began")
        return loaded.params

    def _load_control(self, name: str) -> _Loaded:
        try:
            folder = _controls_of(self._pictures.controlnet_folder)
            path = find_file(folder, name, _TENSORS, "ControlNet", "controlnet_folder")
            found = find_controlnet(path, pickled=self._pictures.pickled)
            found.config.check_fits(self._unet)
            channels, factor = _sees(found.config)
            if channels not in (1, 3):
                raise CheckpointError(f"{path} wants control pictures of {channels} channels; expected 1 or 3")
            if factor != self._factor:
                raise CheckpointError(
                    f"{path} has {factor} pixels to a latent, the model's VAE {self._factor}: it is for another model"
                )
            params, digest = load_control(found, DTYPES[self._dtype])
            return _Loaded(KnownControl(name, found.config, digest), params)
        except (CheckpointError, ConfigError) as error:
            raise JobError(f"controlnets: {name}: {error}") from error
