"""Upscalers with weights: what a plan says of them, and their parameters."""

from pathlib import Path
from typing import Literal, NamedTuple

from jaxtyping import DTypeLike

from sdjax.checkpoints.checkpoint import Checkpoint
from sdjax.checkpoints.diffusers_folder import read_diffusers_folder
from sdjax.checkpoints.tensors import Params, list_file
from sdjax.checkpoints.upscaler_file import find_upscaler, load_upscaler
from sdjax.checkpoints.x4_file import read_x4_file
from sdjax.library.finding import has_ending
from sdjax.models.upscaler import UpscalerConfig


class UpscalerFile(NamedTuple):
    """An upscaler, without its parameters.

    kind: "network" (of the Real-ESRGAN family), or "diffusion" (Stable Diffusion's x4 upscaler of images, or its x2
      upscaler of latents).
    scale: how many times longer the sides become.
    config: of a network; of a diffusion model all that its checkpoint says, with no parameters.
    digest: sha256 of its files.
    path: of its file or folder.
    """

    name: str
    kind: Literal["network", "diffusion"]
    scale: int
    config: UpscalerConfig | Checkpoint
    digest: str
    path: Path


def read_upscaler(path: Path, name: str, pickled: bool) -> UpscalerFile:
    """What is to be known of an upscaler before it runs; its files are hashed, and no parameter is read.

    Args:
      path: a file of weights, or a diffusers folder of one of Stable Diffusion's upscalers.
      name: by which jobs call it.
      pickled: whether pickled files are read.

    Raises:
      CheckpointError: if it is none, or not whole.
      ConfigError: if a config asks for what is not implemented.
    """
    if _is_diffusion(path, pickled):
        config = read_diffusion_upscaler(path, None, pickled)
        return UpscalerFile(name, "diffusion", config.family.upscales, config, config.digest, path)
    found = find_upscaler(path, pickled)
    return UpscalerFile(name, "network", found.config.scale, found.config, found.digest(), path)


def load_params(file: UpscalerFile, dtype: DTypeLike, pickled: bool) -> tuple[Params, str]:
    """The parameters, arrays of numpy, and the digest of the files that they were read from; errors as above.

    Args:
      dtype: of a diffusion model's parameters; a network's are float32.
    """
    if file.kind == "diffusion":
        read = read_diffusion_upscaler(file.path, dtype, pickled)
        return read.params, read.digest
    return load_upscaler(find_upscaler(file.path, pickled))


def read_diffusion_upscaler(path: Path, dtype: DTypeLike | None, pickled: bool = False) -> Checkpoint:
    """The checkpoint of an upscaler that is a diffusion model: a diffusers folder, or an original single file.

    Args:
      dtype: of the parameters; None reads none, and hashes the files all the same.

    Raises:
      CheckpointError: if it is none, or not whole.
      ConfigError: if a config asks for what is not implemented.
    """
    if path.is_dir():
        return read_diffusers_folder(path, dtype=dtype, upscaler=True, pickled=pickled, hashed=True)
    return read_x4_file(path, dtype, pickled=pickled)


def _is_diffusion(path: Path, pickled: bool) -> bool:
    if path.is_dir():
        return True
    return not has_ending(path, (".param",)) and any(
        name.startswith("model.diffusion_model.") for name in list_file(path, pickled).tensors
    )
