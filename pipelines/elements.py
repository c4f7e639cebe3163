"""What goes from step to step of the graph, and the bytes in which it goes.

Each step gives and takes elements of a few kinds in one stream, since several outputs of one step are lost by some
runners. Between steps an element is JSON, as bytes: so every coder of the graph is one of Beam's standard
ones. A coder of a type of ours can be no better: under a URN of its own it is unknown to worker processes that begin
with the graph and import nothing before (Beam's worker pools, the local runner's processes), and without one it is a
pickle, which differs by version.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipelines.sinks.sink import StoredItem
from pipelines.sources.prompts import Reject
from pipelines.sources.rows import Row
from sdjax.jobs.job import Job


class PromptFile(NamedTuple):
    """A prompt file to be read."""

    path: str


class OutputPart(NamedTuple):
    """A part of the output, by number: what is there is listed in part 0."""

    number: int


class PlannedJob(NamedTuple):
    """A job whose image is asked for.

    id: of the image.
    job: the job's canonical form, its fields that are not at their defaults.
    batch_key: short hash; only jobs of one key can share a batch.
    notes: for the metadata, on how the job came about.
    input_images: what the metadata say of the images that it begins with.
    source, line: where its row is.
    cut: whether its prompt or negative prompt is longer than the text encoder reads.
    """

    id: str
    job: Mapping[str, Any]
    batch_key: str
    notes: Mapping[str, Any]
    input_images: str
    source: str
    line: int
    cut: bool

    def to_job(self) -> Job:
        """The job itself; its fields were checked when it was planned, and are again."""
        return Job(**self.job)


class ManifestRow(NamedTuple):
    """The manifest's row of an image, from an earlier run or for this one."""

    id: str
    row: Mapping[str, Any]


class ManifestPart(NamedTuple):
    """A part of the manifest that is written: the rows of ids with a prefix, and how many there are."""

    prefix: str
    rows: int


class PrefixCount(NamedTuple):
    """How many images of a batch key have ids with a prefix."""

    batch_key: str
    prefix: str
    images: int


class PrefixRank(NamedTuple):
    """The place of a prefix among the sorted ids of its batch key.

    rank: of the first id with it.
    shard_size: images in each shard of the batch key.
    """

    batch_key: str
    prefix: str
    rank: int
    shard_size: int


class Count(NamedTuple):
    """A number to be added to one of `Counts`."""

    name: str
    number: int


def counts(**numbers: int) -> Iterator[Count]:
    """Those of them that are not 0."""
    return (Count(name, number) for name, number in numbers.items() if number)


Element = (
    PromptFile
    | OutputPart
    | Row
    | PlannedJob
    | StoredItem
    | ManifestRow
    | ManifestPart
    | PrefixCount
    | PrefixRank
    | Reject
    | Count
)
KINDS: Mapping[str, Any] = {kind.__name__: kind for kind in Element.__args__}


def encode(element: Element) -> bytes:
    """The same bytes for the same element, on any machine and in any version that has its fields.

    The order of a row's columns is kept. Numbers come back digit by digit (whole ones as far as Python reads them, 4300
    digits), and so do texts with halves of surrogate pairs, which names of files have.
    """
    text = json.dumps([type(element).__name__, *element], separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> Element:
    """The element of which these are the bytes.

    Raises:
      ValueError: if they are of none that this version has.
    """
    name, *fields = json.loads(data.decode("utf-8", "surrogatepass"))
    try:
        return KINDS[name](*fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name} with {len(fields)} fields: this worker has another version of sdjax") from error


def is_of(data: bytes, kinds: tuple[type, ...]) -> bool:
    """Whether these are the bytes of an element of some kind."""
    return data.startswith(tuple(f'["{kind.__name__}",'.encode() for kind in kinds))
