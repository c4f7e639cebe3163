"""What pictures are read and seen with: ControlNets, an estimator of depth and upscalers, by name, read once."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from sdjax.checkpoints.controlnet_file import ControlConfig, find_controlnet, load_control
from sdjax.checkpoints.named import find_named
from sdjax.checkpoints.tensors import CheckpointError, Params, list_file
from sdjax.checkpoints.upscaler_file import Upscaler, read_upscaler
from sdjax.depth import DepthModel, depth_of, load_depth
from sdjax.diffusion_upscale import check, upscale_latent_x2, upscale_x4
from sdjax.job import PIXEL_UPSCALERS, Job, JobError
from sdjax.model import DTYPES
from sdjax.models import ConfigError, UNetConfig
from sdjax.models.t2i_adapter import T2IAdapterConfig
from sdjax.pictures import Read, read_file
from sdjax.text import tags
from sdjax.text.controls import Control
from sdjax.upscale import upscaled
from sdjax.upscaler_model import Upscaler as DiffusionUpscaler
from sdjax.upscaler_model import load_upscaler_pipeline

_TENSORS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_UPSCALERS = (".safetensors", ".pth", ".pt", ".param")
_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
# ControlNets that are kept in memory; of Stable Diffusion 1, each takes 1.4 GB in float32.
_MOST_CONTROLS = 4


class Pictures(NamedTuple):
    """Where pictures come from, and what sees them.

    read: gives the bytes of a picture by its path, raising `OSError` or `ValueError` that says why it can't.
    controlnet_folder: of ControlNets and T2I adapters: files, and folders that diffusers wrote; None has none.
    depth_model: an estimator of depth, as `load_depth` takes it; None has none.
    upscaler_folder: of upscalers' files; None has none.
    pickled: whether pickled files (.pth, .pt, .ckpt, .bin) may be read, by a reader that runs nothing.
    """

    read: Read = read_file
    controlnet_folder: str | Path | None = None
    depth_model: str | Path | None = None
    upscaler_folder: str | Path | None = None
    pickled: bool = False


class LoadedControl(NamedTuple):
    """A ControlNet or a T2I adapter.

    params: arrays of numpy.
    digest: sha256 of its files.
    """

    config: ControlConfig
    params: Params
    digest: str


def _sees(config: ControlConfig) -> tuple[int, int]:
    """The channels of a network's control picture, and how many of its pixels, along one side, make a latent."""
    if isinstance(config, T2IAdapterConfig):
        return config.in_channels, config.downscale_factor
    return config.conditioning_channels, config.factor


def _is_diffusion(path: Path, pickled: bool) -> bool:
    return any(name.startswith("model.diffusion_model.") for name in list_file(path, pickled).tensors)


def _factor(upscaler: Upscaler | DiffusionUpscaler | None) -> int:
    if isinstance(upscaler, Upscaler):
        return upscaler.scale
    return upscaler.factor if upscaler else 1


def _prompts(job: Job) -> tuple[str, str]:
    """Prompt and negative prompt for an upscaler, on which no adapter acts."""
    if job.prompt_syntax != "a1111":
        return job.prompt, job.negative_prompt
    return tags.cut(job.prompt).text, tags.cut(job.negative_prompt).text


class PictureLibrary:
    """What a model's jobs name of `Pictures`; a file is read when it is first needed."""

    def __init__(self, pictures: Pictures, unet: UNetConfig, factor: int, dtype: str, vae_tile: int) -> None:
        """Reads nothing yet.

        Args:
          pictures: where all is.
          unet: of the model.
          factor: pixels to a latent of its VAE.
          dtype: of the parameters of ControlNets, and of upscalers that are diffusion models.
          vae_tile: as of the engine.
        """
        self._pictures = pictures
        self._unet = unet
        self._factor = factor
        self._dtype = dtype
        self._vae_tile = vae_tile
        self._control = functools.lru_cache(_MOST_CONTROLS)(self._load_control)
        self._upscaler = functools.lru_cache(2)(self._load_upscaler)

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
          JobError: if nothing estimates it.
        """
        if self.depth is None:
            raise JobError("depth is to be estimated: set depth_model, or give a depth_image")
        return depth_of(self.depth, pixels)

    def controls(self, named: Sequence[Control]) -> tuple[LoadedControl, ...]:
        """The ControlNets that a job names.

        Raises:
          JobError: if one is not there, can't be read, or is for another model.
        """
        return tuple(self._control(control.name) for control in named)

    def _load_control(self, name: str) -> LoadedControl:
        try:
            folder = self._pictures.controlnet_folder
            path = find_named(folder, name, _TENSORS, "ControlNet", "controlnet_folder")
            found = find_controlnet(path, pickled=self._pictures.pickled)
            found.config.check_fits(self._unet)
            channels, factor = _sees(found.config)
            if channels not in (1, 3):
                raise CheckpointError(f"{path} wants control pictures of {channels} channels; expected 1 or 3")
            if factor != self._factor:
                raise CheckpointError(
                    f"{path} has {factor} pixels to a latent, the model's VAE {self._factor}: it is for another model"
                )
            return LoadedControl(found.config, *load_control(found, DTYPES[self._dtype]))
        except (CheckpointError, ConfigError) as error:
            raise JobError(f"controlnets: {name}: {error}") from error

    def upscaler(self, name: str) -> Upscaler | DiffusionUpscaler | None:
        """The upscaler of that name; None for one without weights.

        Raises:
          JobError: if there is none, or it can't be read.
        """
        return None if name in PIXEL_UPSCALERS else self._upscaler(name)

    def _load_upscaler(self, name: str) -> Upscaler | DiffusionUpscaler:
        pickled = self._pictures.pickled
        try:
            folder = self._pictures.upscaler_folder
            path = find_named(folder, name, _UPSCALERS, "upscaler", "upscaler_folder")
            if path.is_dir() or (path.suffix != ".param" and _is_diffusion(path, pickled)):
                return load_upscaler_pipeline(path, dtype=self._dtype, pickled=pickled)
            return read_upscaler(path, pickled=pickled)
        except (CheckpointError, ConfigError) as error:
            raise JobError(str(error)) from error

    def check_upscaler(self, job: Job, name: str) -> None:
        """Raises `JobError` if an upscaler that is a diffusion model can't do what a job asks."""
        upscaler = self.upscaler(name)
        if isinstance(upscaler, DiffusionUpscaler):
            prompt, negative = _prompts(job)
            check(
                upscaler,
                prompt,
                negative,
                steps=job.upscaler_steps,
                guidance_scale=job.upscaler_guidance_scale,
                noise_level=job.upscaler_noise_level,
                prompt_syntax=job.prompt_syntax,
            )

    def finished(self, image: UInt8[np.ndarray, "h w 3"], job: Job) -> UInt8[np.ndarray, "y x 3"]:
        """An image as large as its job wants it in the end."""
        if job.upscaler is None:
            return image
        upscaler = self.upscaler(job.upscaler)
        by = job.upscale_by or float(_factor(upscaler))
        # Twice as large it is already, if that was done to the latents.
        by = by / 2 if isinstance(upscaler, DiffusionUpscaler) and upscaler.factor == 2 else by
        height, width = (round(side * by) for side in image.shape[:2])
        if isinstance(upscaler, DiffusionUpscaler) and upscaler.factor == 4:
            prompt, negative = _prompts(job)
            [image] = upscale_x4(
                upscaler,
                image[None],
                [prompt],
                [job.seed or 0],
                negative_prompts=[negative],
                steps=job.upscaler_steps,
                guidance_scale=job.upscaler_guidance_scale,
                noise_level=job.upscaler_noise_level,
                noise_source=job.noise_source,
                prompt_syntax=job.prompt_syntax,
                vae_tile=self._vae_tile if image.shape[0] * image.shape[1] * 16 > 4 * self._vae_tile**2 else 0,
            )
        return self.enlarged(image[None], job.upscaler, height, width)[0]

    def larger_latents(
        self, latents: Float32[np.ndarray, "b h w c"], jobs: Sequence[Job]
    ) -> Float32[np.ndarray, "b i j c"]:
        """Latents of twice the size, by the upscaler that all of some jobs name; those of one by one."""
        upscaler = self.upscaler(jobs[0].upscaler or "")
        assert isinstance(upscaler, DiffusionUpscaler), "only such an upscaler takes latents"
        made = []
        for each, job in zip(latents, jobs, strict=True):
            prompt, negative = _prompts(job)
            made.append(
                upscale_latent_x2(
                    upscaler,
                    each[None],
                    [prompt],
                    [job.seed or 0],
                    negative_prompts=[negative],
                    steps=job.upscaler_steps,
                    guidance_scale=job.upscaler_guidance_scale,
                    noise_source=job.noise_source,
                )[0]
            )
        return np.stack(made)

    def takes_latents(self, job: Job) -> bool:
        """Whether a job's upscaler is one of latents."""
        upscaler = None if job.upscaler is None else self.upscaler(job.upscaler)
        return isinstance(upscaler, DiffusionUpscaler) and upscaler.factor == 2

    def enlarged(
        self, images: UInt8[np.ndarray, "b h w 3"], name: str, height: int, width: int
    ) -> UInt8[np.ndarray, "b {height} {width} 3"]:
        """Images of another size, by an upscaler (as often as it takes, then made smaller) or by interpolation."""
        upscaler = self.upscaler(name)
        if isinstance(upscaler, Upscaler):
            while upscaler.scale > 1 and (images.shape[1] < height or images.shape[2] < width):
                images = upscaled(upscaler, images)
        kind = _FILTERS.get(name, Image.Resampling.LANCZOS)
        return np.stack([np.asarray(Image.fromarray(image).resize((width, height), kind)) for image in images])
