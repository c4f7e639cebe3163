"""What may be read because an output says so: of an output that somebody else made, only what lies in it.

A summary names models and folders, and metadata name images: paths of any machine, and names on a hub. Whoever verifies
an output says which of them are meant, one by one or all at once.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.config import RunConfig, RunConfigError
from pipelines.config.recorded import from_record
from pipelines.config.sections import KEYS, paths, replaced
from pipelines.sinks.output import read_config, summary_error
from pipelines.sources import input_images
from sdjax.jobs.input_images import scheme_of
from sdjax.jobs.job import JobError
from sdjax.messages import quoted
from sdjax.storage import open_store

# Pixels of a batch that is made again because a stranger's metadata say so: 16 images of 2048x2048.
_MAX_PIXELS = 1 << 26
# Fields by which an image becomes larger.
_FACTORS = ("hires_scale", "upscale_by")
_HOW = "--trust, if this output is yours"
_REVISIONS = {"model.name": "model.revision", "model.vae": "model.vae_revision"}


class TrustError(ValueError):
    """An output asks for something that the user has not allowed."""


def made_with(out: str) -> RunConfig:
    """With what the last run into an output was done, as its summary says.

    Raises:
      StorageError: if the output has no summary, or not one that `generate` writes.
    """
    store = open_store(out)
    config = read_config(store)
    try:
        return from_record(config)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise summary_error(store, error) from error


def moved(config: RunConfig, named: Mapping[str, str]) -> RunConfig:
    """The same with some files and folders elsewhere; raises `RunConfigError` for a key that is not about one."""
    known = [key for key, of in KEYS.items() if of.kind.is_path]
    for key in named:
        if key not in known:
            raise RunConfigError(f"{key} is no file or folder of a run; expected one of {', '.join(known)}")
    # A place on this machine has no revisions.
    revisions = {of: None for place, of in _REVISIONS.items() if place in named}
    return replaced(config, {**named, **revisions})


def allowed(given: RunConfig, named: Mapping[str, Any], trust: bool, pickled: bool) -> RunConfig:
    """What may be loaded: what the user names, what is bundled, and the rest only if all of the output is trusted.

    Args:
      given: what the output says.
      named: places by key, which the user names.
      trust: whether the output's own places may be read.
      pickled: whether pickled files may be read, whatever the output says.

    Raises:
      TrustError: if the output names a place that the user has not allowed.
      RunConfigError: for a key that is no place.
    """
    if trust:
        return moved(given, named)
    strange = {key: path for key, path in paths(given).items() if key not in named}
    if strange:
        listed = ", ".join(f"{key} = {quoted(value)}" for key, value in strange.items())
        raise TrustError(
            f"this output names {listed}: verify reads only what you allow: {_HOW}; or say where they are with "
            f"{' '.join('--model PATH' if key == 'model.name' else f'--set {key}=PATH' for key in strange)}; "
            "--sample 0 reads none of it, and compares files and manifest alone"
        )
    return replaced(moved(given, named), {"model.pickled": pickled})


def reader(out: str, trust: bool) -> Callable[[str], bytes]:
    """Reads input images: of an output that is not trusted only those that lie in it."""
    if trust:
        return input_images.read
    root = os.path.realpath(out)
    far = scheme_of(out) is not None

    def is_inside(path: str) -> bool:
        if far or scheme_of(path) is not None:
            return far and path.startswith(out.rstrip("/") + "/") and ".." not in path.split("/")
        return os.path.commonpath([root, os.path.realpath(path)]) == root

    def read(path: str) -> bytes:
        if not is_inside(path):
            raise JobError(f"{path} is not in this output, so it is not read: {_HOW}")
        return input_images.read(path)

    return read


def too_large(metadata: Mapping[str, Any]) -> str | None:
    """Why an image of an output that is not trusted is not made again; None if it is no more than due."""
    sides = [max(metadata[name], metadata.get(f"image_{name}") or 0) for name in ("height", "width")]
    larger = [value for name in _FACTORS if isinstance(value := metadata.get(name), int | float) and value > 1]
    pixels = round(metadata["batch_size"] * sides[0] * sides[1] * math.prod(larger) ** 2)
    if pixels <= _MAX_PIXELS:
        return None
    return f"a batch of {metadata['batch_size']} of its size has {pixels} pixels, more than {_MAX_PIXELS}: {_HOW}"
