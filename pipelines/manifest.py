"""What a run leaves beside the pictures: `metadata.jsonl`, `rejects.jsonl` and `summary.json`.

The manifest is written in groups of rows, side by side, which are joined in the end; what is not yet whole has
temporary names.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pipelines import runners, storage
from pipelines.records import METADATA, SUMMARY, read_manifest
from pipelines.run import Record, Run, reporting_failure
from sdjax.job import with_seeds_as_text

REJECTS = "rejects.jsonl"
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


def files_there(out: str, run: Run) -> Iterator[tuple[str, tuple[str, int]]]:
    """Id, and path and size of each picture of an output."""
    with reporting_failure(run):
        for done in storage.list_done(out):
            yield done.id, (done.path, done.size)


def steps_there(out: str, run: Run) -> Iterator[tuple[str, tuple[str, int]]]:
    """Id, and ending and size of each file of previews."""
    with reporting_failure(run):
        for done in storage.list_steps(out):
            yield done.id, (done.path.rpartition(".")[2], done.size)


def old_rows(out: str, run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the manifest as it was left, by id; none if there is no manifest yet.

    Raises:
      StorageError: if it is not what a run writes.
    """
    with reporting_failure(run):
        if not storage.exists(storage.join(out, METADATA)):
            return
        try:
            yield from ((row["id"], with_seeds_as_text(row)) for row in read_manifest(out))
        except storage.StorageError as error:
            raise storage.StorageError(f"{error}: delete the file, and it is made anew") from error


def grouped_row(image: tuple[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The manifest row of a picture, by the first digits of its id."""
    image_id, row = image
    yield image_id[:_GROUP_DIGITS], row


def group_path(run: Run, digits: str) -> str:
    """Where a part of the manifest lies until the whole is written."""
    return storage.join(run.out, f"{storage.TEMPORARY}{run.name}-{digits}")


def write_group(digits: str, rows: Iterable[dict[str, Any]], run: Run) -> Record:
    """Writes rows whose ids begin alike, sorted by id, to a temporary file; tells how many."""
    by_id = {row["id"]: row for row in rows}
    with reporting_failure(run):
        storage.write_jsonl(group_path(run, digits), (by_id[image_id] for image_id in sorted(by_id)))
    return "group", (digits, len(by_id))


def write_manifest(groups: Iterable[str], run: Run) -> None:
    """Joins the groups to `metadata.jsonl`."""
    rows = (row for digits in sorted(groups) for row in storage.read_jsonl(group_path(run, digits)))
    with reporting_failure(run):
        storage.write_jsonl(storage.join(run.out, METADATA), rows)


def write_rejects(rejects: Iterable[dict[str, Any]], run: Run) -> None:
    """Writes `rejects.jsonl` in the order of the files; an earlier run's goes if there are none."""
    path = storage.join(run.out, REJECTS)
    rows = sorted(rejects, key=lambda reject: (reject["source"], reject["line"], reject["text"]))
    with reporting_failure(run):
        if rows:
            storage.write_jsonl(path, rows)
        else:
            storage.delete(path, missing_ok=True)


def write_summary(counts: Counts, run: Run) -> None:
    """Writes `summary.json`: what became of everything, and how the run was configured."""
    config = {**dataclasses.asdict(run.config), "job": dict(run.config.job)}
    text = json.dumps({"counts": counts._asdict(), "config": config}, indent=2, sort_keys=True)
    with reporting_failure(run):
        storage.write_whole(storage.join(run.out, SUMMARY), text.encode() + b"\n")


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
    with reporting_failure(run):
        _check_whole(sum(groups.values()), counts)
    write_manifest(groups, run)
    write_rejects(rejects, run)
    write_summary(counts, run)
    with reporting_failure(run):
        storage.write_whole(group_path(run, _COUNTS), json.dumps(counts._asdict()).encode())


def _check_whole(rows: int, counts: Counts) -> None:
    if rows < counts.made + counts.there:
        raise runners.RunnerError(
            f"{counts.made + counts.there} pictures were made or there, but the runner brought the metadata of {rows}: "
            "take another runner; the same command then makes the manifest, and nothing twice"
        )


def counted(run: Run) -> Counts:
    """What the end of the graph left; raises `RunnerError` if a runner didn't come there."""
    path = group_path(run, _COUNTS)
    if not storage.exists(path):
        raise runners.RunnerError(
            f"the runner says that it is done, but not all was done and {METADATA} is as it was: take another runner; "
            "the same command goes on from here"
        )
    return Counts(**json.loads(storage.read_whole(path)))
