"""Depth maps of a folder of images, as grey images of 16 bits: near is bright."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipelines.sources import input_images
from sdjax import storage
from sdjax.images.read import read_image
from sdjax.library.depth import DepthModel, depth_of, grey_png16, sized
from sdjax.library.finding import files_under, has_companion

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_WRITTEN = ".depth.png"


class Mapped(NamedTuple):
    """What became of an image: the file of its map, or why there is none."""

    image: str
    file: str
    problem: str | None
    there: bool


def images_in(folder: str) -> list[str]:
    """The images of a folder and those within it, on this machine also behind links, by the ends of their names.

    Raises:
      StorageError: if there is none.
    """
    if os.path.isfile(folder):
        raise storage.StorageError(f"{folder} is a file; expected a folder of images")
    there = map(str, files_under(Path(folder))) if os.path.isdir(folder) else storage.list_files(folder)
    ends = tuple(path for path in sorted(there) if path.lower().endswith(_ENDINGS))
    found = [path for path in ends if not path.endswith(_WRITTEN) and not has_companion(path.removeprefix(folder))]
    if not found:
        raise storage.StorageError(f"{folder}: there is no such folder, or no image in it")
    return found


def map_folder(
    folder: str, out: str, load: Callable[[], DepthModel], on_done: Callable[[], None] = lambda: None
) -> Iterator[Mapped]:
    """Writes a depth map for each image of a folder, under the same name with `.depth.png`; those there stay.

    Args:
      folder: of the images.
      out: folder of the maps.
      load: gives the estimator, when it is needed.
      on_done: called after each image.

    Raises:
      StorageError: if one of the folders is none.
      CheckpointError, ConfigError: if the estimator can't be used.
    """
    if os.path.isfile(out):
        raise storage.StorageError(f"{out} is a file; expected a folder for the maps")
    model = None
    for path in images_in(folder):
        name = path.removeprefix(folder).lstrip("/" + os.sep)
        file = storage.join(out, name + _WRITTEN)
        if storage.exists(file):
            yield Mapped(path, file, None, True)
        else:
            model = model or load()
            try:
                data = _map_of(model, path)
            except ValueError as error:
                yield Mapped(path, file, str(error), False)
            else:
                storage.write_whole(file, data)
                yield Mapped(path, file, None, False)
        on_done()


def _map_of(model: DepthModel, path: str) -> bytes:
    """The file of an image's map; raises `ValueError` that names the image if there can't be one."""
    pixels = read_image(input_images.read(path), path).pixels
    try:
        near = sized(depth_of(model, pixels), *pixels.shape[:2])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    written = io.BytesIO()
    Image.fromarray(grey_png16(near)).save(written, "PNG")
    return written.getvalue()
