"""What counts as done: an image whose file is the one that was written, and the steps that its row asked to keep.

The size that a row of the manifest states is compared with the one that the listing gives, so that a rerun opens no
file. An image without such a row, which a killed run left, is read whole once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines import storage
from pipelines.records import Sizes, file_name, manifest_row
from sdjax.images.decode import ImageError
from sdjax.images.encode import read_metadata

# The ending of the strip of previews, beside which there is an animation.
_STRIP = "png"


def whole_row(
    image_id: str,
    files: Iterable[tuple[str, int]],
    steps: Mapping[str, int],
    rows: Iterable[Mapping[str, Any]],
    animation: str,
) -> dict[str, Any] | None:
    """The manifest row of an image of which there is a whole file; None if there is none.

    Args:
      image_id: of it.
      files: path and size of what lies under its name.
      steps: sizes of its previews, by the endings of their files.
      rows: of the manifest as it was left.
      animation: the ending of animations in this run.
    """
    known = {row["file_name"]: row for row in rows}
    for path, size in files:
        extension = path.rpartition(".")[2]
        row = known.get(file_name(image_id, extension), {})
        if "file_size" in row:
            if row["file_size"] == size:
                return dict(row)
        elif metadata := _metadata_of(image_id, path):
            sizes = Sizes(size, steps.get(_STRIP, 0), steps.get(animation, 0))
            return manifest_row(image_id, metadata, extension, sizes)
    return None


def has_steps(row: Mapping[str, Any], steps: Mapping[str, int], animation: str) -> bool:
    """Whether the previews of an image are there as its row states them; arguments are those of `whole_row`."""
    stated = {_STRIP: row.get("steps_size"), animation: row.get("animation_size")}
    return all(size and steps.get(ending) == size for ending, size in stated.items())


def _metadata_of(image_id: str, path: str) -> dict[str, Any] | None:
    """What an image's file says, if all of it can be read and it is of this image."""
    try:
        metadata = read_metadata(storage.read_limited(path), path)
    except (ImageError, storage.StorageError):
        return None
    return metadata if metadata.get("id") == image_id else None
