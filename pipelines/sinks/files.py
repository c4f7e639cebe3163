"""An image a file: `images/ab/<id>.png`, its previews in `steps/ab/`, the rows in `metadata.jsonl`.

Each file is written whole under its final name, previews before their image, so that an image which is there is done
with all that goes with it. The size that a row of the manifest states is compared with the one that a listing gives:
a rerun opens no file. An image without such a row, which a killed run left, is read whole once.
"""

import dataclasses
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipelines.sinks.files_check import check_files
from pipelines.sinks.manifest_rows import (
    EXTENSIONS,
    IMAGES,
    METADATA,
    FileSizes,
    image_name,
    manifest_row,
    problem_of,
)
from pipelines.sinks.output import temporary_name
from pipelines.sinks.previews import draw_previews
from pipelines.sinks.sink import Finding, StoredItem, WriteResult
from pipelines.sinks.threads import mapped
from sdjax.engine.engine import Result
from sdjax.images.decode import MAX_BYTES, ImageError
from sdjax.images.encode import FORMATS, EncodeError, encode, read_metadata
from sdjax.jobs.a1111_text import a1111_text
from sdjax.jobs.records import with_seeds_as_numbers, with_seeds_as_text
from sdjax.storage import NO_FOLDERS, StorageError, Store, open_store

STEPS = "steps"
# The ending of the strip of previews, beside which there is an animation.
_STRIP = "png"

_IMAGE_FILE = re.compile(rf"{IMAGES}/([0-9a-f]{{2}})/(\1[0-9a-f]{{30}})\.({EXTENSIONS})")
_STEPS_FILE = re.compile(rf"{STEPS}/([0-9a-f]{{2}})/(\1[0-9a-f]{{30}})\.(png|webp|gif)")
_FOLDERS = re.compile(r"[0-9a-f]{2}")
# Where files of a run are.
_LAYOUT = {"": NO_FOLDERS, f"{IMAGES}/": _FOLDERS, f"{STEPS}/": _FOLDERS}


def steps_name(image_id: str, extension: str) -> str:
    """Where the previews of an image are, from the output's folder."""
    return f"{STEPS}/{image_id[:2]}/{image_id}.{extension}"


@dataclasses.dataclass(frozen=True)
class FilesSink:
    """An output of loose files, as Hugging Face's ImageFolder reads it.

    Attributes:
      url: of the output.
      image_format: of what is written, a key of `FORMATS`.
      animation: of previews, one of `ANIMATIONS`.
    """

    url: str
    image_format: str
    animation: str

    @property
    def manifest(self) -> str:
        """Name of the file with the rows."""
        return METADATA

    @property
    def store(self) -> Store:
        """Where the files are."""
        return open_store(self.url)

    # --- What a run does with it ---

    def stored_items(self) -> Iterator[StoredItem]:
        """The files of images and of previews, by one listing each, and the rows of the manifest, if there is one."""
        yield from self.images()
        yield from self.steps()
        if not self.store.exists(METADATA):
            return
        try:
            for row in self.rows():
                yield StoredItem(row["id"], "row", row["file_name"], row=with_seeds_as_text(row))
        except StorageError as error:
            raise StorageError(f"{error}: delete the file, and it is made again") from error

    def complete_row(self, items: Sequence[StoredItem], steps: bool) -> dict[str, Any] | None:
        """By the sizes that its row states, or, without such a row, by reading it."""
        rows = {each.name: each.row for each in items if each.row is not None}
        kept = {_extension(each.name): each.size for each in items if each.kind == "steps"}
        for image in items:
            if image.kind == "image" and (row := self._row_of(image, rows.get(image.name) or {}, kept)):
                return None if steps and not self._has_steps(row, kept) else row
        return None

    def _row_of(self, image: StoredItem, row: Mapping[str, Any], kept: Mapping[str, int]) -> dict[str, Any] | None:
        """The row of an image's file, if that is whole."""
        if "file_size" in row:
            return dict(row) if row["file_size"] == image.size else None
        try:
            metadata = read_metadata(self.read(image.name), self.path(image.name))
        except (ImageError, StorageError):
            return None
        if metadata.get("id") != image.id:
            return None
        sizes = FileSizes(image.size, kept.get(_STRIP, 0), kept.get(self.animation, 0))
        return manifest_row(image.id, metadata, _extension(image.name), sizes)

    def _has_steps(self, row: Mapping[str, Any], kept: Mapping[str, int]) -> bool:
        """Whether the previews of an image are there as its row states them."""
        stated = {_STRIP: row.get("steps_size"), self.animation: row.get("animation_size")}
        return all(size and kept.get(ending) == size for ending, size in stated.items())

    def write(self, results: Iterable[Result]) -> Iterator[WriteResult]:
        """In threads, while the next are made; rows come in the order of the results, each once its image is there."""
        return mapped(self._write_image, results)

    def _write_image(self, result: Result) -> WriteResult:
        image_id, extension = result.metadata["id"], FORMATS[self.image_format].extension
        try:
            data = encode(result.image, result.metadata, a1111_text(result.metadata), self.image_format)
        except EncodeError as error:
            return WriteResult(image_id, None, str(error))
        # Before the image, whose being there says that all is done.
        steps = self._write_steps(image_id, result) if result.previews else ()
        self.store.put(image_name(image_id, extension), data)
        row = manifest_row(image_id, result.metadata, extension, FileSizes(len(data), *steps))
        return WriteResult(image_id, row)

    def _write_steps(self, image_id: str, result: Result) -> tuple[int, int]:
        """Writes the strip and the animation; gives their sizes."""
        steps = draw_previews(result, self.animation)
        self.store.put(steps_name(image_id, _STRIP), steps.strip)
        self.store.put(steps_name(image_id, self.animation), steps.animation)
        return len(steps.strip), len(steps.animation)

    def write_rows(self, run: str, part: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """To a file with a temporary name."""
        by_id = {row["id"]: row for row in rows}
        self.store.write_jsonl(temporary_name(run, part), (by_id[image_id] for image_id in sorted(by_id)))
        return len(by_id)

    def finish(self, run: str, parts: Iterable[str]) -> None:
        """Joins the parts to `metadata.jsonl`."""
        store = self.store
        rows = (row for part in sorted(parts) for row in store.read_jsonl(temporary_name(run, part)))
        store.write_jsonl(METADATA, rows)

    def remove_leftovers(self) -> Sequence[str]:
        """Folders of others are not looked into."""
        return self.store.remove_leftovers(_LAYOUT)

    # --- What reads an output ---

    def images(self) -> Iterator[StoredItem]:
        """Files and folders of other names are passed over."""
        for file in self.store.list(f"{IMAGES}/", _FOLDERS):
            if found := _IMAGE_FILE.fullmatch(file.name):
                yield StoredItem(found[2], "image", file.name, file.size)

    def steps(self) -> Iterator[StoredItem]:
        """The previews of images, strips and animations, likewise."""
        for file in self.store.list(f"{STEPS}/", _FOLDERS):
            if found := _STEPS_FILE.fullmatch(file.name):
                yield StoredItem(found[2], "steps", file.name, file.size)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Errors name the line that is no row of generate's."""
        for number, row in enumerate(self.store.read_jsonl(METADATA), 1):
            if problem := problem_of(row):
                path = self.path(METADATA)
                raise StorageError(f"{path}, line {number}: not what generate writes: {problem}")
            yield with_seeds_as_numbers(row)

    def read(self, name: str) -> bytes:
        """Of any file of the output but links, which may lead anywhere, and up to what an image takes."""
        path = self.path(name)
        if self.store.is_link(name):
            raise StorageError(f"{path} is a link: an output's images are files of its own; put the file there")
        data = self.store.get(name, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise StorageError(f"{path} has more than {MAX_BYTES} bytes, which no image takes")
        return data

    def path(self, name: str) -> str:
        """Where a file is."""
        return self.store.path(name)

    def check(self) -> Iterator[Finding]:
        """Compares `metadata.jsonl` with the images, their own metadata and their previews."""
        return check_files(self)


def _extension(name: str) -> str:
    return posixpath.splitext(name)[1][1:]
