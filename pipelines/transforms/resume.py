"""Planned jobs, and what the output holds already -> the jobs that are left, and manifest rows of the others."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from pipelines import done, storage, worker
from pipelines.elements import Element, ImageFile, ManifestRow, OutputPart, PlannedJob, StepsFile, counts
from pipelines.records import METADATA, read_manifest
from pipelines.run import Run
from pipelines.sources.prompts import Reject
from pipelines.transforms import steps
from sdjax.jobs.job import with_seeds_as_text

_DAMAGED = "not the whole image of this name, and no row of this run asks for it: run its prompts again, or delete it"


def existing(part: OutputPart, run: Run) -> Iterator[ImageFile | StepsFile | ManifestRow]:
    """What an output holds: files of images and of kept steps, and the rows of the manifest as it was left.

    Raises:
      StorageError: if the manifest is not what a run writes.
    """
    if part.number:
        return
    with worker.reporting_failure(run):
        yield from (ImageFile(file.id, file.path, file.size) for file in storage.list_done(run.out))
        for file in storage.list_steps(run.out):
            yield StepsFile(file.id, file.path.rpartition(".")[2], file.size)
        if storage.exists(storage.join(run.out, METADATA)):
            yield from _old_rows(run.out)


def _old_rows(out: str) -> Iterator[ManifestRow]:
    try:
        yield from (ManifestRow(row["id"], with_seeds_as_text(row)) for row in read_manifest(out))
    except storage.StorageError as error:
        raise storage.StorageError(f"{error}: delete the file, and it is made anew") from error


def missing(image_id: str, elements: Iterable[Element], run: Run) -> Iterator[Element]:
    """The jobs of an image, and what there is of it -> its manifest row, or a job if it is to be made; and counts."""
    found = list(elements)
    jobs = [each for each in found if isinstance(each, PlannedJob)]
    files = [each for each in found if isinstance(each, ImageFile)]
    row = _whole_row(image_id, found, any(job.job.get("preview_every") for job in jobs), run)
    if row:
        yield row
    elif files and not jobs:
        yield Reject(files[0].path, 0, "", _DAMAGED)
        yield from counts(damaged=1)
    elif jobs:
        # Any of them gives the same image; the first by its place is named if it fails.
        yield min(jobs, key=lambda job: (job.source, job.line))
    if jobs:
        worker.reporter_of(run.progress).add("wanted", -len(jobs) if row else 1 - len(jobs))
        yield from counts(there=1 if row else 0, duplicates=len(jobs) - 1)


def _whole_row(image_id: str, found: Iterable[Element], keeps_steps: bool, run: Run) -> ManifestRow | None:
    """The row of an image of which there are whole files; None if there are none."""
    files = [(each.path, each.size) for each in found if isinstance(each, ImageFile)]
    kept = {each.extension: each.size for each in found if isinstance(each, StepsFile)}
    rows = [each.row for each in found if isinstance(each, ManifestRow)]
    row = done.whole_row(image_id, files, kept, rows, run.config.animation)
    if row is None or (keeps_steps and not done.has_steps(row, kept, run.config.animation)):
        return None
    return ManifestRow(image_id, row)


def id_of(element: PlannedJob | ImageFile | StepsFile | ManifestRow) -> str:
    """The id of the image that it is of."""
    return element.id


class Resume(beam.PTransform):
    """Planned jobs, parts of the output -> manifest rows of images that are there, jobs of the others, and counts."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def expand(self, inputs: Any) -> beam.PCollection:
        """What is of one image is grouped by its id."""
        planned, output = inputs
        return (
            (planned | "Jobs" >> steps.only(PlannedJob), output | "Existing" >> steps.each(existing, self._run))
            | "Both" >> beam.Flatten()
            | "Id" >> steps.with_keys(id_of)
            | "ById" >> beam.GroupByKey()
            | "Missing" >> steps.groups(missing, self._run)
        )
