"""What a run leaves beside the images: the manifest, `rejects.jsonl` and `summary.json`.

The manifest is written in parts, side by side, which are joined in the end; what is not yet whole has temporary names.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam

from pipelines import runners
from pipelines.config.recorded import to_record
from pipelines.elements import Count, Element, ManifestPart, ManifestRow, decode, encode
from pipelines.run import Run, sink_of
from pipelines.sinks import extension_of
from pipelines.sinks.output import temporary_name, write_rejects, write_summary
from pipelines.sources.prompts import Reject
from pipelines.transforms import steps
from pipelines.worker import reporting_failure
from sdjax.storage import open_store

# Digits of ids by which the manifest is cut into parts, of which each is sorted.
_PREFIX = 2
# What the end of the graph leaves for the process that started it, beside those parts.
_COUNTS = "counts"


class Counts(NamedTuple):
    """What became of everything. `problems` says where these don't add up; nowhere, unless there is a bug.

    broken_files: prompt files that break off; their rows up to there are among `rows`.
    cut_prompts: of the images wanted, those whose prompt or negative prompt was longer than the text encoder reads.
    damaged: files of images of earlier runs that are not whole, and that no row asks for.
    """

    rows: int
    rejected_rows: int
    broken_files: int
    cut_prompts: int
    wanted: int
    made: int
    there: int
    duplicates: int
    failed: int
    damaged: int

    def problems(self) -> list[str]:
        """The sums that are wrong."""
        ended = self.made + self.there + self.duplicates + self.failed
        return [] if self.wanted == ended else [f"{self.wanted} images wanted, but {ended} accounted for"]


def prefix_of(row: ManifestRow) -> str:
    """The first digits of the image's id."""
    return row.id[:_PREFIX]


def write_part(prefix: str, rows: Iterable[ManifestRow], run: Run) -> Iterator[ManifestPart]:
    """Writes rows of ids with one prefix to a part of the manifest; gives how many."""
    with reporting_failure(run):
        yield ManifestPart(prefix, sink_of(run).write_rows(run.name, prefix, (row.row for row in rows)))


def finish(elements: Iterable[Element], run: Run) -> None:
    """Writes manifest, rejects and summary, and the counts for the process that started the run.

    Raises:
      RunnerError: if rows of images didn't arrive; the manifest stays as it was.
    """
    parts: dict[str, int] = {}
    rejects: list[Reject] = []
    total: Counter[str] = Counter(dict.fromkeys(Counts._fields, 0))
    for element in elements:
        if isinstance(element, ManifestPart):
            parts[element.prefix] = element.rows
        elif isinstance(element, Reject):
            rejects.append(element)
        elif isinstance(element, Count):
            total[element.name] += element.number
    counts = Counts(**total)
    store = open_store(run.out)
    with reporting_failure(run):
        _check_whole(sum(parts.values()), counts)
        sink_of(run).finish(run.name, parts)
        write_rejects(store, (reject._asdict() for reject in rejects))
        write_summary(store, counts._asdict(), to_record(run.config), extension_of(run.config.output.sink))
        store.put(temporary_name(run.name, _COUNTS), json.dumps(counts._asdict()).encode())


def _check_whole(rows: int, counts: Counts) -> None:
    if rows < counts.made + counts.there:
        raise runners.RunnerError(
            f"{counts.made + counts.there} images were made or there, but the runner brought the metadata of {rows}: "
            "take another runner; the same command then makes the manifest, and nothing twice"
        )


def counted(run: Run) -> Counts:
    """What the end of the graph left; raises `RunnerError` if a runner didn't come there."""
    store, name = open_store(run.out), temporary_name(run.name, _COUNTS)
    if not store.exists(name):
        raise runners.RunnerError(
            "the runner says that it is done, but not all was done and the manifest is as it was: take another runner; "
            "the same command goes on from here"
        )
    return Counts(**json.loads(store.get(name)))


# --- Steps ---


def _name_and_number(data: bytes) -> tuple[str, int]:
    count: Any = decode(data)
    return count.name, count.number


def _summed(name: str, number: int) -> bytes:
    return encode(Count(name, number))


def _finish(_: str, elements: Iterable[Element], run: Run) -> tuple[()]:
    finish(elements, run)
    return ()


def _one_key(data: bytes) -> tuple[str, bytes]:
    return "", data


class WriteManifest(beam.PTransform):
    """Manifest rows, rejects and counts -> the files; the end of the graph."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        """Rows are written by prefix, counts are summed, and then one worker joins what there is."""
        parts = (
            elements
            | "Rows" >> steps.only(ManifestRow)
            | "Prefix" >> steps.with_keys(prefix_of)
            | "ByPrefix" >> beam.GroupByKey()
            | "WritePart" >> steps.groups(write_part, self._run)
        )
        counts = (
            elements
            | "Counts" >> steps.only(Count)
            | "ByName" >> beam.Map(_name_and_number).with_output_types(tuple[str, int])
            | "Sum" >> beam.CombinePerKey(steps.Total())
            | "Summed" >> beam.MapTuple(_summed).with_output_types(bytes)
        )
        return (
            (parts, counts, elements | "Rejects" >> steps.only(Reject))
            | "Ends" >> beam.Flatten()
            | "OneKey" >> beam.Map(_one_key).with_output_types(tuple[str, bytes])
            | "Gather" >> beam.GroupByKey()
            | "Finish" >> steps.groups(_finish, self._run)
        )
