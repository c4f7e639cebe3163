"""What makes images larger, by name: interpolations, Real-ESRGAN's networks, and diffusion models."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import cachetools
import jax
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from sdjax.checkpoints.sd_upscaler import UpscalerCheckpoint
from sdjax.checkpoints.tensors import CheckpointError, Params
from sdjax.checkpoints.upscaler_file import Upscaler
from sdjax.diffusion.enlarge import LATENT_UPSCALERS
from sdjax.jobs.job import MAX_SIDE, PIXEL_UPSCALERS, Job, JobError, check_upscaler_options
from sdjax.library.opened import OpenLibrary
from sdjax.library.upscalers import UpscalerFile
from sdjax.models import ConfigError, VAEConfig
from sdjax.models.vae_tiles import tile_of
from sdjax.text import tags
from sdjax.upscaling.diffusion_upscale import check, check_latents, upscale_latent_x2, upscale_x4
from sdjax.upscaling.tiles import upscaled
from sdjax.upscaling.upscaler_model import Upscaler as DiffusionUpscaler
from sdjax.upscaling.upscaler_model import upscaler_of

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
# Upscalers whose parameters stay in the device's memory: a job names two at most.
_MOST_HELD = 2
# Of what an upscaler gives on the way to a smaller image.
_MOST_PIXELS = 2 * MAX_SIDE**2
# The factors of Stable Diffusion's two upscalers: of latents, and of pictures.
_OF_LATENTS, _OF_PICTURES = 2, 4


class Enlarged(NamedTuple):
    """Images, and whether what made each of them gave numbers; where it did not, the image is worth nothing."""

    images: UInt8[np.ndarray, "b h w 3"]
    finite: Bool[np.ndarray, " b"]


def _prompts(job: Job) -> tuple[str, str]:
    """Prompt and negative prompt for an upscaler, on which no adapter acts."""
    if job.prompt_syntax != "a1111":
        return job.prompt, job.negative_prompt
    return tags.cut(job.prompt).text, tags.cut(job.negative_prompt).text


def _fits(scale: int, height: int, width: int) -> bool:
    """Whether there is room for what an upscaler gives, before it is made smaller."""
    return height * width * scale**2 <= _MOST_PIXELS


def _goes_on(scale: int, shape: tuple[int, ...], height: int, width: int) -> bool:
    """Whether an upscaler that was run is run again: while the image is too small, and there is room for the next."""
    return scale > 1 and (shape[0] < height or shape[1] < width) and _fits(scale, *shape[:2])


def _check_room(upscaler: UpscalerFile | None, named: str, height: int, width: int) -> None:
    if upscaler is not None and not _fits(upscaler.scale, height, width):
        raise JobError(f"{named}: {width}x{height} pixels are too large for it, which enlarges {upscaler.scale} times")


def _factor(upscaler: UpscalerFile | None) -> float:
    return float(upscaler.scale) if upscaler else 1.0


class Upscalers:
    """The upscalers that a model's jobs name, by which images are enlarged."""

    def __init__(self, library: OpenLibrary, *, vae: VAEConfig, dtype: str, vae_tile: int) -> None:
        """Reads nothing yet.

        Args:
          library: with the files.
          vae: of the model whose images are enlarged.
          dtype: of the parameters of diffusion models.
          vae_tile: as of the engine.
        """
        self._library, self._vae, self._dtype, self._vae_tile = library, vae, dtype, vae_tile
        # By name, as they were when the run first named them.
        self._files: dict[str, UpscalerFile] = {}
        # By digest: diffusion models without parameters, and parameters on the default device.
        self._models: dict[str, DiffusionUpscaler] = {}
        self._held: cachetools.LRUCache[str, Params] = cachetools.LRUCache(_MOST_HELD)

    def named(self, name: str, field: str = "upscaler") -> UpscalerFile | None:
        """The upscaler of that name; None for one without weights.

        Raises:
          JobError: naming the field, if there is none, or it can't be read, or it is another than before.
        """
        if name in PIXEL_UPSCALERS:
            return None
        found = self._library.upscaler(name, field)
        if self._files.setdefault(name, found).digest != found.digest:
            del self._files[name]  # for what comes after this run
            raise JobError(f"{field} = {name!r}: its file has changed since the run began")
        return found

    def _params(self, file: UpscalerFile) -> Params:
        """Parameters on the default device."""
        if file.digest not in self._held:
            self._held[file.digest] = jax.device_put(self._library.upscaler_params(file))
        return self._held[file.digest]

    def _network(self, file: UpscalerFile) -> Upscaler:
        assert not isinstance(file.config, UpscalerCheckpoint), "it is a diffusion model"
        return Upscaler(file.config, self._params(file), file.digest)

    def _model(self, file: UpscalerFile) -> DiffusionUpscaler:
        """A diffusion model without its parameters."""
        assert isinstance(file.config, UpscalerCheckpoint), "it is a network"
        if file.digest not in self._models:
            try:
                self._models[file.digest] = upscaler_of(file.config, file.path, self._dtype)
            except (CheckpointError, ConfigError) as error:
                raise JobError(f"upscaler = {file.name!r}: {error}") from error
        return self._models[file.digest]

    def _loaded_model(self, file: UpscalerFile) -> DiffusionUpscaler:
        return dataclasses.replace(self._model(file), params=self._params(file))

    def digests(self, job: Job) -> dict[str, str]:
        """Of the files of the upscalers that a job names, by what metadata call them."""
        hires = None if job.hires_scale is None or job.hires_upscaler in LATENT_UPSCALERS else job.hires_upscaler
        found = {"hires_upscaler_digest": hires, "upscaler_digest": job.upscaler}
        named = {key: self.named(name) for key, name in found.items() if name is not None}
        return {key: upscaler.digest for key, upscaler in named.items() if upscaler is not None}

    def check(self, job: Job, height: int, width: int) -> None:
        """Finds out whether the upscalers that a job names can do what it asks.

        Args:
          job: with its size.
          height: of its image before the last upscaler.
          width: likewise.

        Raises:
          JobError: if not, or the image would be too large.
        """
        if job.hires_scale is not None and job.hires_upscaler not in LATENT_UPSCALERS:
            upscaler = self.named(job.hires_upscaler, "hires_upscaler")
            if upscaler is not None and upscaler.kind == "diffusion":
                raise JobError(f"hires_upscaler = {job.hires_upscaler!r} is a diffusion model; name it as upscaler")
            assert job.height is not None and job.width is not None, "the job is not resolved"
            _check_room(upscaler, f"hires_upscaler = {job.hires_upscaler!r}", job.height, job.width)
        upscaler = self._finishing(job)
        if upscaler is not None and upscaler.kind == "diffusion":
            self._check_diffusion(self._model(upscaler), job, height, width)
        elif upscaler is not None:
            check_upscaler_options(job)
            _check_room(upscaler, f"upscaler = {job.upscaler!r}", height, width)
        if max(self.decoded_size(job, height, width)) > MAX_SIDE:
            raise JobError(
                f"{job.upscaler}: {width}x{height} pixels are too large for it, which gives more than {MAX_SIDE}"
            )
        if job.upscaler is not None:
            by = job.upscale_by or _factor(upscaler)
            height, width = round(height * by), round(width * by)
            if max(height, width) > MAX_SIDE:
                raise JobError(f"{job.upscaler}: gives {width}x{height} pixels; expected up to {MAX_SIDE}")

    def _finishing(self, job: Job) -> UpscalerFile | None:
        return None if job.upscaler is None else self.named(job.upscaler)

    def _check_diffusion(self, upscaler: DiffusionUpscaler, job: Job, height: int, width: int) -> None:
        prompt, negative = _prompts(job)
        check(upscaler, prompt, negative, **self._options(job), **self._x4_options(job))
        if upscaler.factor != _OF_LATENTS:
            return
        vae = self._vae
        check_latents(upscaler, height // vae.factor, width // vae.factor, vae.latent_channels)
        for field in ("mask_image", "preview_every"):
            if getattr(job, field) is not None:
                said = f"{field} = {getattr(job, field)!r}"
                raise JobError(f"{said}: not with {job.upscaler}, which makes latents larger")

    def _options(self, job: Job) -> dict[str, Any]:
        return {"steps": job.upscaler_steps, "guidance_scale": job.upscaler_guidance_scale}

    def _x4_options(self, job: Job) -> dict[str, Any]:
        return {
            "noise_level": job.upscaler_noise_level,
            "prompt_syntax": job.prompt_syntax,
            "prompt_problems": job.prompt_problems,
        }

    def of_latents(self, job: Job) -> str | None:
        """The digest of a job's upscaler, if that is one of latents."""
        upscaler = self._finishing(job)
        is_one = upscaler is not None and (upscaler.kind, upscaler.scale) == ("diffusion", _OF_LATENTS)
        return upscaler.digest if upscaler is not None and is_one else None

    def decoded_size(self, job: Job, height: int, width: int) -> tuple[int, int]:
        """Of what is decoded after a job's upscaler, for an image of this size; 0 and 0 if nothing is."""
        upscaler = self._finishing(job)
        if upscaler is None or upscaler.kind != "diffusion":
            return 0, 0
        return height * upscaler.scale, width * upscaler.scale

    def larger_latents(
        self, latents: Float32[np.ndarray, "b h w c"], jobs: Sequence[Job]
    ) -> Float32[np.ndarray, "b i j c"]:
        """Latents of twice the size, by the upscaler that all of some jobs name; those of one by one."""
        file = self._finishing(jobs[0])
        assert file is not None, "only an upscaler with weights takes latents"
        upscaler = self._loaded_model(file)
        made = []
        for each, job in zip(latents, jobs, strict=True):
            prompt, negative = _prompts(job)
            more = {"negative_prompts": [negative], "noise_source": job.noise_source, **self._options(job)}
            made.append(upscale_latent_x2(upscaler, each[None], [prompt], [job.seed or 0], **more)[0])
        return np.stack(made)

    def finished(self, image: UInt8[np.ndarray, "h w 3"], job: Job) -> Enlarged:
        """An image as large as its job wants it in the end."""
        if job.upscaler is None:
            return Enlarged(image[None], np.array([True]))
        upscaler = self.named(job.upscaler)
        by = job.upscale_by or _factor(upscaler)
        if self.of_latents(job) is not None:
            by /= _OF_LATENTS  # so much larger it is already
        height, width = (round(side * by) for side in image.shape[:2])
        finite = np.array([True])
        if upscaler is not None and (upscaler.kind, upscaler.scale) == ("diffusion", _OF_PICTURES):
            try:
                image = self._times_four(self._loaded_model(upscaler), image, job)
            except ArithmeticError:
                finite = np.array([False])
        made = self.enlarged(image[None], job.upscaler, height, width)
        return Enlarged(made.images, made.finite & finite)

    def _times_four(
        self, upscaler: DiffusionUpscaler, image: UInt8[np.ndarray, "h w 3"], job: Job
    ) -> UInt8[np.ndarray, "y x 3"]:
        prompt, negative = _prompts(job)
        return upscale_x4(
            upscaler,
            image[None],
            [prompt],
            [job.seed or 0],
            negative_prompts=[negative],
            noise_source=job.noise_source,
            vae_tile=tile_of(*self.decoded_size(job, *image.shape[:2]), self._vae_tile),
            **self._options(job),
            **self._x4_options(job),
        )[0]

    def enlarged(self, images: UInt8[np.ndarray, "b h w 3"], name: str, height: int, width: int) -> Enlarged:
        """Images of another size, by an upscaler (as often as it takes, then made smaller) or by interpolation."""
        file = self.named(name)
        upscaler = self._network(file) if file is not None and file.kind == "network" else None
        kind = _FILTERS.get(name, Image.Resampling.LANCZOS)
        finite = np.ones(len(images), bool)
        made = []
        for index, image in enumerate(images):
            if upscaler is not None:
                try:
                    image = upscaled(upscaler, image[None])[0]
                    while _goes_on(upscaler.scale, image.shape, height, width):
                        image = upscaled(upscaler, image[None])[0]
                except ArithmeticError:
                    finite[index] = False
            made.append(np.asarray(Image.fromarray(image).resize((width, height), kind)))
        return Enlarged(np.stack(made), finite)
