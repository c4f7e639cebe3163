"""A row of `metadata.jsonl`: how it is written, and what is taken of those that a stranger may have written."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdjax.images.encode import FORMATS
from sdjax.jobs.records import with_seeds_as_text
from sdjax.messages import quoted

METADATA, IMAGES = "metadata.jsonl", "images"
# Endings of images, for patterns.
EXTENSIONS = "|".join(known.extension for known in FORMATS.values())

# What generate writes into each row, and of which type.
_TYPES: Mapping[str, type] = {"file_name": str, "id": str, "prompt": str, "width": int, "height": int}
# Pixels of a side: of a job's largest image, enlarged as far as can be.
_MAX_SIDE = 8 * 8192
_FILE_NAME = re.compile(rf"{IMAGES}/([0-9a-f]{{2}})/\1[0-9a-f]{{30}}\.({EXTENSIONS})")
_SCALARS = str | int | float | None


class FileSizes(NamedTuple):
    """Bytes of the files of an image, as columns of its row: a file of another size is not the one that was written.

    steps_size, animation_size: of its previews, 0 if there are none.
    """

    file_size: int
    steps_size: int = 0
    animation_size: int = 0


def image_name(image_id: str, extension: str) -> str:
    """Where an image is, from the output's folder: `images/ab/<id>.png`, a 256th of them in each folder."""
    return f"{IMAGES}/{image_id[:2]}/{image_id}.{extension}"


def manifest_row(image_id: str, metadata: Mapping[str, Any], extension: str, sizes: FileSizes) -> dict[str, Any]:
    """A row of `metadata.jsonl` as Hugging Face's ImageFolder reads it, keys sorted as an image has them."""
    columns = dict(sorted(with_seeds_as_text(metadata).items()))
    return {"file_name": image_name(image_id, extension), **sizes._asdict(), **columns}


def without_sizes(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says that the image itself says too."""
    return {name: value for name, value in with_seeds_as_text(row).items() if name not in FileSizes._fields}


def problem_of(row: Mapping[str, Any]) -> str | None:
    """Why a row is none that generate writes, whoever wrote it; None if it may be one.

    Its file is below `images/` then, and nowhere else.
    """
    for name, kind in _TYPES.items():
        value = row.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{name} = {quoted(value)}: expected {'text' if kind is str else 'a whole number'}"
    for name, value in row.items():
        if not isinstance(value, _SCALARS):
            return f"{name} is a {type(value).__name__}: expected text, a number, true, false or null"
    for name in FileSizes._fields:
        if not isinstance(row.get(name, 0), int) or isinstance(row.get(name), bool):
            return f"{name} = {quoted(row[name])}: expected a number of bytes"
    if not _FILE_NAME.fullmatch(row["file_name"]):
        return f"file_name = {quoted(row['file_name'])}: expected images/ab/<id>.png, as generate names images"
    if not re.fullmatch("[0-9]{1,20}", str(row.get("seed"))):
        return f"seed = {quoted(row.get('seed'))}: expected a whole number"
    for name in ("width", "height"):
        if not 1 <= row[name] <= _MAX_SIDE:
            return f"{name} = {quoted(row[name])}: expected 1 to {_MAX_SIDE} pixels"
    return None
