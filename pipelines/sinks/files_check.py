"""Compares the rows of `metadata.jsonl` with the files of images: names, sizes, and what each image says of itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.sinks.manifest_rows import METADATA, problem_of, without_sizes
from pipelines.sinks.sink import Finding, StoredItem
from sdjax.images.decode import ImageError
from sdjax.images.encode import read_metadata
from sdjax.images.previews import check_previews
from sdjax.jobs.records import with_seeds_as_text
from sdjax.messages import quoted
from sdjax.storage import StorageError

if TYPE_CHECKING:
    from pipelines.sinks.files import FilesSink

_AGAIN = "run the same generate command again"


def check_files(sink: "FilesSink") -> Iterator[Finding]:
    """What is wrong with the files of an output; each is read whole."""
    if not sink.store.exists(METADATA):
        yield Finding(METADATA, f"is missing; {_AGAIN}")
        return
    names = {image.name for image in sink.images()}
    steps: dict[str, list[StoredItem]] = {}
    for each in sink.steps():
        steps.setdefault(each.id, []).append(each)
    stated = set()
    for number, row in enumerate(sink.store.read_jsonl(METADATA), 1):
        if problem := problem_of(row):
            yield Finding(f"{METADATA}, line {number}", f"not what generate writes: {problem}")
            continue
        name = row["file_name"]
        if name in stated:
            yield Finding(name, f"stands twice in {METADATA}")
        elif name not in names:
            yield Finding(name, f"stands in {METADATA}, but there is no such image")
        else:
            yield from _check_image(sink, row, steps.get(row["id"], ()))
        stated.add(name)
    for name in sorted(names - stated):
        yield Finding(name, f"is not in {METADATA}; {_AGAIN}")


def _check_image(sink: "FilesSink", row: Mapping[str, Any], steps: Sequence[StoredItem]) -> Iterator[Finding]:
    name = row["file_name"]
    try:
        data = sink.read(name)
        inside = read_metadata(data, sink.path(name))
    except (ImageError, StorageError) as error:
        yield Finding(name, f"{error}; delete it and {_AGAIN}")
        return
    if {"file_name": name, **with_seeds_as_text(inside)} != without_sizes(row):
        yield Finding(name, f"its own metadata differ from its row in {METADATA}")
    elif not name.endswith(f"/{row['id']}.{name.rpartition('.')[2]}"):
        yield Finding(name, f"it is the image of another name: its id is {quoted(row['id'])}")
    elif row.get("file_size", len(data)) != len(data):
        yield Finding(name, f"it has {len(data)} bytes, and its row states {quoted(row['file_size'])}")
    elif {row.get(column) for column in ("steps_size", "animation_size")} - {None, 0, *(each.size for each in steps)}:
        yield Finding(name, f"its previews are missing or of another size; {_AGAIN}")
    else:
        yield from _check_steps(sink, steps)


def _check_steps(sink: "FilesSink", steps: Sequence[StoredItem]) -> Iterator[Finding]:
    for path, name in sorted((sink.path(each.name), each.name) for each in steps):
        try:
            check_previews(sink.read(name), path)
        except (ImageError, StorageError) as error:
            yield Finding(path, f"{error}; delete it and {_AGAIN}")
