"""A row of `metadata.jsonl`: how a run writes it, and what is taken of those that a stranger may have written."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipelines import storage
from sdjax.job import with_seeds_as_numbers, with_seeds_as_text
from sdjax.messages import quoted

METADATA, SUMMARY = "metadata.jsonl", "summary.json"

# What generate writes into each row, and of which type.
_TYPES: Mapping[str, type] = {"file_name": str, "id": str, "prompt": str, "width": int, "height": int}
# Pixels of a side: of a job's largest image, enlarged as far as can be.
_MAX_SIDE = 8 * 8192
_FILE_NAME = re.compile(rf"{storage.IMAGES}/([0-9a-f]{{2}})/\1[0-9a-f]{{30}}\.({storage.EXTENSIONS})")
_SCALARS = str | int | float | None


class Sizes(NamedTuple):
    """Bytes of the files of an image, as columns of its row: a file of another size is not the one that was written.

    steps_size, animation_size: of its previews, 0 if there are none.
    """

    file_size: int
    steps_size: int = 0
    animation_size: int = 0


def file_name(image_id: str, extension: str) -> str:
    """The path of an image from the output's folder."""
    return storage.image_path("", image_id, extension)


def manifest_row(image_id: str, metadata: Mapping[str, Any], extension: str, sizes: Sizes) -> dict[str, Any]:
    """A row of `metadata.jsonl` as Hugging Face's ImageFolder reads it, keys sorted as an image has them."""
    columns = dict(sorted(with_seeds_as_text(metadata).items()))
    return {"file_name": file_name(image_id, extension), **sizes._asdict(), **columns}


def without_sizes(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says that the image itself says too."""
    return {name: value for name, value in with_seeds_as_text(row).items() if name not in Sizes._fields}


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
    for name in Sizes._fields:
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


def read_manifest(out: str) -> Iterator[dict[str, Any]]:
    """The rows of an output's manifest with seeds as numbers, streaming.

    Raises:
      StorageError: if it can't be read; names the line that is no row of generate's.
    """
    path = storage.join(out, METADATA)
    for number, row in enumerate(storage.read_jsonl(path), 1):
        if problem := problem_of(row):
            raise storage.StorageError(f"{path}, line {number}: not what generate writes: {problem}")
        yield with_seeds_as_numbers(row)
