"""What makes images larger, by name: interpolations, Real-ESRGAN's networks, and diffusion models."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from sdjax.checkpoints.find_file import find_file
from sdjax.checkpoints.tensors import CheckpointError, list_file
from sdjax.checkpoints.upscaler_file import UpscalerNetwork, read_upscaler
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.diffusion_upscale import check, check_latents, upscale_latent_x2, upscale_x4
from sdjax.job import MAX_SIDE, PIXEL_UPSCALERS, Job, JobError, check_upscaler_options
from sdjax.library.finding import has_ending, hint
from sdjax.messages import quoted
from sdjax.models import ConfigError, VAEConfig
from sdjax.models.vae_tiles import tile_of
from sdjax.text import tags
from sdjax.upscale import upscaled
from sdjax.upscaler_model import Upscaler as DiffusionUpscaler
from sdjax.upscaler_model import load_upscaler_pipeline

# Of files of upscalers.
ENDINGS = (".safetensors", ".pth", ".pt", ".param")
_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
# Upscalers that are kept in the device's memory: networks of some ten megabytes, and diffusion models of gigabytes.
_MOST, _MOST_DIFFUSION = 8, 2
# Of what an upscaler gives on the way to a smaller image.
_MOST_PIXELS = 2 * MAX_SIDE**2
# The factors of Stable Diffusion's two upscalers: of latents, and of pictures.
_OF_LATENTS, _OF_PICTURES = 2, 4


class Enlarged(NamedTuple):
    """Images, and whether what made each of them gave numbers; where it did not, the image is worth nothing."""

    images: UInt8[np.ndarray, "b h w 3"]
    finite: Bool[np.ndarray, " b"]


def _is_diffusion(path: Path, pickled: bool) -> bool:
    return any(name.startswith("model.diffusion_model.") for name in list_file(path, pickled).tensors)


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


def _check_room(upscaler: UpscalerNetwork | None, named: str, height: int, width: int) -> None:
    if upscaler is not None and not _fits(upscaler.scale, height, width):
        raise JobError(f"{named}: {width}x{height} pixels are too large for it, which enlarges {upscaler.scale} times")


def _factor(upscaler: UpscalerNetwork | DiffusionUpscaler | None) -> float:
    if isinstance(upscaler, DiffusionUpscaler):
        return float(upscaler.factor)
    return float(upscaler.scale) if upscaler else 1.0


class Upscalers:
    """Upscalers of one folder; a file is read when it is first needed."""

    def __init__(self, folder: str | Path | None, *, pickled: bool, vae: VAEConfig, dtype: str, vae_tile: int) -> None:
        """Reads nothing yet.

        Args:
          folder: of the files; None has none.
          pickled: whether pickled ones may be read.
          vae: of the model whose images are enlarged.
          dtype: of the parameters of diffusion models.
          vae_tile: as of the engine.
        """
        self._folder, self._pickled, self._vae = folder, pickled, vae
        self._vae_tile = vae_tile
        self._kinds = functools.cache(self._find)
        self._networks = functools.lru_cache(_MOST)(functools.partial(read_upscaler, pickled=pickled))
        self._diffusion = functools.lru_cache(_MOST_DIFFUSION)(
            functools.partial(load_upscaler_pipeline, dtype=dtype, pickled=pickled)
        )
        self._digests: dict[str, str] = {}

    def named(self, name: str) -> UpscalerNetwork | DiffusionUpscaler | None:
        """The upscaler of that name; None for one without weights.

        Raises:
          JobError: if there is none, or it can't be read, or it is another than before.
        """
        if name in PIXEL_UPSCALERS:
            return None
        try:
            path, is_diffusion = self._kinds(name)
            found = self._diffusion(path) if is_diffusion else self._networks(path)
        except (CheckpointError, ConfigError) as error:
            known = (*PIXEL_UPSCALERS, *LATENT_UPSCALERS)
            raise JobError(f"upscaler = {quoted(name)}: {error}{hint(name, known)}") from error
        if self._digests.setdefault(name, found.digest) != found.digest:
            del self._digests[name]  # for what comes after this run
            raise JobError(f"upscaler = {name!r}: its file has changed since the run began")
        return found

    def _find(self, name: str) -> tuple[Path, bool]:
        """Where it is, and whether it is a diffusion model."""
        path = find_file(self._folder, name, ENDINGS, "upscaler", "upscaler_folder")
        return path, path.is_dir() or (not has_ending(path, (".param",)) and _is_diffusion(path, self._pickled))

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
            try:
                upscaler = self.named(job.hires_upscaler)
            except JobError as error:
                raise JobError(f"hires_{error}") from error
            if isinstance(upscaler, DiffusionUpscaler):
                raise JobError(f"hires_upscaler = {job.hires_upscaler!r} is a diffusion model; name it as upscaler")
            assert job.height is not None and job.width is not None, "the job is not resolved"
            _check_room(upscaler, f"hires_upscaler = {job.hires_upscaler!r}", job.height, job.width)
        upscaler = self._finishing(job)
        if isinstance(upscaler, DiffusionUpscaler):
            self._check_diffusion(upscaler, job, height, width)
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

    def _finishing(self, job: Job) -> UpscalerNetwork | DiffusionUpscaler | None:
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
        is_one = isinstance(upscaler, DiffusionUpscaler) and upscaler.factor == _OF_LATENTS
        return upscaler.digest if upscaler is not None and is_one else None

    def decoded_size(self, job: Job, height: int, width: int) -> tuple[int, int]:
        """Of what is decoded after a job's upscaler, for an image of this size; 0 and 0 if nothing is."""
        upscaler = self._finishing(job)
        return (
            (height * upscaler.factor, width * upscaler.factor) if isinstance(upscaler, DiffusionUpscaler) else (0, 0)
        )

    def larger_latents(
        self, latents: Float32[np.ndarray, "b h w c"], jobs: Sequence[Job]
    ) -> Float32[np.ndarray, "b i j c"]:
        """Latents of twice the size, by the upscaler that all of some jobs name; those of one by one."""
        upscaler = self._finishing(jobs[0])
        assert isinstance(upscaler, DiffusionUpscaler), "only such an upscaler takes latents"
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
        if isinstance(upscaler, DiffusionUpscaler) and upscaler.factor == _OF_PICTURES:
            try:
                image = self._times_four(upscaler, image, job)
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
        upscaler = self.named(name)
        kind = _FILTERS.get(name, Image.Resampling.LANCZOS)
        finite = np.ones(len(images), bool)
        made = []
        for index, image in enumerate(images):
            if isinstance(upscaler, UpscalerNetwork):
                try:
                    image = upscaled(upscaler, image[None])[0]
                    while _goes_on(upscaler.scale, image.shape, height, width):
                        image = upscaled(upscaler, image[None])[0]
                except ArithmeticError:
                    finite[index] = False
            made.append(np.asarray(Image.fromarray(image).resize((width, height), kind)))
        return Enlarged(np.stack(made), finite)
