"""Upscalers by name: networks (Real-ESRGAN) and diffusion models of one folder, each read when it is first needed."""

import functools
from pathlib import Path

from sdjax.checkpoints.named import find_named
from sdjax.checkpoints.tensors import CheckpointError, list_file
from sdjax.checkpoints.upscaler_file import Upscaler as Network
from sdjax.checkpoints.upscaler_file import read_upscaler
from sdjax.diffusion.enlarge import LATENT_UPSCALERS
from sdjax.jobs.job import PIXEL_UPSCALERS, Job, JobError
from sdjax.library.finding import has_ending, hint
from sdjax.messages import shown
from sdjax.model import Model
from sdjax.models import ConfigError
from sdjax.upscaling.diffusion import load_diffusion_upscaler

# Of files of upscalers.
ENDINGS = (".safetensors", ".pth", ".pt", ".param")
# Upscalers that are kept in memory: networks of some ten megabytes, and diffusion models of gigabytes.
_MOST, _MOST_DIFFUSION = 8, 2


def _is_diffusion(path: Path, pickled: bool) -> bool:
    return any(name.startswith("model.diffusion_model.") for name in list_file(path, pickled).tensors)


class Upscalers:
    """Upscalers of one folder; a file is read when it is first needed."""

    def __init__(self, folder: str | Path | None, *, pickled: bool, dtype: str) -> None:
        """Reads nothing yet.

        Args:
          folder: of the files; None has none.
          pickled: whether pickled ones may be read.
          dtype: of the parameters of diffusion models.
        """
        self._folder, self._pickled = folder, pickled
        self._kinds = functools.cache(self._find)
        self._networks = functools.lru_cache(_MOST)(functools.partial(read_upscaler, pickled=pickled))
        self._diffusion = functools.lru_cache(_MOST_DIFFUSION)(
            functools.partial(load_diffusion_upscaler, dtype=dtype, pickled=pickled)
        )
        self._digests: dict[str, str] = {}

    def named(self, name: str) -> Network | Model | None:
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
            raise JobError(f"upscaler = {shown(name)}: {error}{hint(name, known)}") from error
        if self._digests.setdefault(name, found.digest) != found.digest:
            del self._digests[name]  # for what comes after this run
            raise JobError(f"upscaler = {name!r}: its file has changed since the run began")
        return found

    def _find(self, name: str) -> tuple[Path, bool]:
        """Where it is, and whether it is a diffusion model."""
        path = find_named(self._folder, name, ENDINGS, "upscaler", "upscaler_folder")
        return path, path.is_dir() or (not has_ending(path, (".param",)) and _is_diffusion(path, self._pickled))

    def digest(self, name: str) -> str | None:
        """Of an upscaler's files; None for one without weights. Errors are those of `named`."""
        found = self.named(name)
        return None if found is None else found.digest

    def digests(self, job: Job) -> dict[str, str]:
        """Of the files of the upscalers that a job names, by what metadata call them."""
        hires = None if job.hires_scale is None or job.hires_upscaler in LATENT_UPSCALERS else job.hires_upscaler
        names = {"hires_upscaler_digest": hires, "upscaler_digest": job.upscaler}
        digests = {key: self.digest(name) for key, name in names.items() if name is not None}
        return {key: digest for key, digest in digests.items() if digest is not None}
