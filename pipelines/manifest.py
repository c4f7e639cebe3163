"""What a run leaves beside the images: the manifest, `rejects.jsonl` and `summary.json`.

The manifest is written in groups of rows, side by side, which are joined in the end; what is not yet whole has
temporary names.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pipelines import runners
from pipelines.run import Record, Run, reporting_failure, sink_of
from pipelines.sinks.output import temporary_name, write_rejects, write_summary
from pipelines.sinks.sink import StoredItem
from sdjax.storage import open_store

# Groups of rows in which the metadata are sorted, one after the other: by the first digits of the id.
_GROUP_DIGITS = 2
# What the end of the graph leaves for the process that started it, beside those groups.
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


def stored_items(out: str, run: Run) -> Iterator[tuple[str, StoredItem]]:
    """What there is of images in an output, by id.

    Raises:
      StorageError: if the manifest is not what a run writes.
    """
    with reporting_failure(run):
        yield from ((each.id, each) for each in sink_of(run).stored_items())


def grouped_row(image: tuple[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The manifest row of a picture, by the first digits of its id."""
    image_id, row = image
    yield image_id[:_GROUP_DIGITS], row


def write_group(digits: str, rows: Iterable[dict[str, Any]], run: Run) -> Record:
    """Writes rows whose ids begin alike, sorted by id, to a temporary file; tells how many."""
    with reporting_failure(run):
        return "group", (digits, sink_of(run).write_rows(run.name, digits, rows))


def finish(records: Iterable[Record], run: Run) -> None:
    """Writes manifest, rejects and summary, and the counts for the process that started the run.

    Raises:
      RunnerError: if rows of pictures didn't arrive; the manifest stays as it was.
    """
    groups: dict[str, int] = {}
    rejects: list[dict[str, Any]] = []
    total: Counter[str] = Counter(dict.fromkeys(Counts._fields, 0))
    for kind, value in records:
        if kind == "group":
            groups[value[0]] = value[1]
        elif kind == "reject":
            rejects.append(value)
        elif kind == "count":
            total[value[0]] += value[1]
    counts = Counts(**total)
    store = open_store(run.out)
    with reporting_failure(run):
        _check_whole(sum(groups.values()), counts)
        sink_of(run).finish(run.name, groups)
        write_rejects(store, rejects)
        write_summary(store, counts._asdict(), {**dataclasses.asdict(run.config), "job": dict(run.config.job)})
        store.put(temporary_name(run.name, _COUNTS), json.dumps(counts._asdict()).encode())


def _check_whole(rows: int, counts: Counts) -> None:
    if rows < counts.made + counts.there:
        raise runners.RunnerError(
            f"{counts.made + counts.there} pictures were made or there, but the runner brought the metadata of {rows}: "
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
