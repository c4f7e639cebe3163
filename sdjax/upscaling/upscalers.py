"""The upscalers that jobs name, as a planner knows them: without their parameters."""

from sdjax.checkpoints.checkpoint import Checkpoint
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.jobs.canonical import PIXEL_UPSCALERS
from sdjax.jobs.job import Job, JobError
from sdjax.library.opened import OpenLibrary
from sdjax.library.upscalers import UpscalerFile
from sdjax.model import Model
from sdjax.models import ConfigError
from sdjax.upscaling.diffusion import diffusion_upscaler_of


class Upscalers:
    """The upscalers of a library."""

    def __init__(self, library: OpenLibrary, dtype: str) -> None:
        """Reads nothing yet.

        Args:
          library: with the files.
          dtype: of the parameters of diffusion models.
        """
        self._library, self._dtype = library, dtype
        # By name, as they were when the run first named them.
        self._files: dict[str, UpscalerFile] = {}
        # By digest.
        self._models: dict[str, Model] = {}

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

    def model(self, file: UpscalerFile) -> Model:
        """An upscaler that is a diffusion model, without parameters.

        Raises:
          JobError: if its scheduler can't be used.
        """
        assert isinstance(file.config, Checkpoint), "it is a network"
        if file.digest not in self._models:
            try:
                self._models[file.digest] = diffusion_upscaler_of(file.config, file.path, self._dtype)
            except (CheckpointError, ConfigError) as error:
                raise JobError(f"upscaler = {file.name!r}: {error}") from error
        return self._models[file.digest]

    def digests(self, job: Job) -> dict[str, str]:
        """Of the files of the upscalers that a job names, by what metadata call them."""
        hires = None if job.hires_scale is None or job.hires_upscaler in LATENT_UPSCALERS else job.hires_upscaler
        names = {"hires_upscaler_digest": hires, "upscaler_digest": job.upscaler}
        files = {key: self.named(name) for key, name in names.items() if name is not None}
        return {key: file.digest for key, file in files.items() if file is not None}
