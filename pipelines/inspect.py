"""What a model, a picture or this machine is, as (name, value) lines."""

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path

import jax

from pipelines.compiled import cache_folder
from sdjax.checkpoints.diffusers_folder import describe_folder
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.images.encode import PictureError, describe_picture, read_metadata, read_parameters
from sdjax.model import folder_of
from sdjax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "transformers", "safetensors", "apache-beam")


def environment() -> Iterator[tuple[str, str]]:
    """Versions and devices."""
    yield "sdjax", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"
    for device in jax.local_devices():
        yield "device", f"{device.id}: {device.device_kind} ({device.platform})"
    yield "compiled programs", str(cache_folder())


def describe(path: str) -> Iterator[tuple[str, str]]:
    """What a model or a picture is.

    Raises:
      CheckpointError: if it is neither a picture nor a model.
      PictureError: for a damaged picture.
    """
    if Path(path).is_file():
        yield from _picture(Path(path))
    else:
        yield from describe_folder(folder_of(path))


def _picture(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix in (".safetensors", ".ckpt", ".json", ".bin"):
        raise CheckpointError(f"{path} is no picture; a model is a diffusers folder, give the folder")
    yield "picture", describe_picture(path, str(path))
    try:
        metadata = read_metadata(path, str(path))
    except PictureError:
        text = read_parameters(path, str(path))
        yield "sdjax", "no metadata: made by something else, or stripped"
        for line in (text or "").splitlines():
            yield "parameters", line
        return
    for name, value in metadata.items():
        yield name, str(value)
