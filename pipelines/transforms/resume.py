"""Planned jobs, and what the output holds already -> the jobs that are left, and manifest rows of the others."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from pipelines import worker
from pipelines.elements import Element, ManifestRow, OutputPart, PlannedJob, counts
from pipelines.run import Run, sink_of
from pipelines.sinks.sink import StoredItem
from pipelines.sources.prompts import Reject
from pipelines.transforms import steps

_DAMAGED = "not the whole image of this name, and no row of this run asks for it: run its prompts again, or delete it"


def existing(part: OutputPart, run: Run) -> Iterator[StoredItem]:
    """What an output holds of images and of their rows.

    Raises:
      StorageError: if the manifest is not what a run writes.
    """
    if part.number:
        return
    with worker.reporting_failure(run):
        yield from sink_of(run).stored_items()


def missing(image_id: str, elements: Iterable[PlannedJob | StoredItem], run: Run) -> Iterator[Element]:
    """The jobs of an image, and what there is of it -> its manifest row, or a job if it is to be made; and counts."""
    found = list(elements)
    jobs = [each for each in found if isinstance(each, PlannedJob)]
    items = [each for each in found if isinstance(each, StoredItem)]
    sink = sink_of(run)
    row = sink.complete_row(items, steps=any(job.job.get("preview_every") for job in jobs))
    images = [item for item in items if item.kind == "image"]
    if row:
        yield ManifestRow(image_id, row)
    elif images and not jobs:
        yield Reject(sink.path(images[0].name), 0, "", _DAMAGED)
        yield from counts(damaged=1)
    elif jobs:
        # Any of them gives the same image; the first by its place is named if it fails.
        yield min(jobs, key=lambda job: (job.source, job.line))
    if jobs:
        worker.reporter_of(run.progress).add("wanted", -len(jobs) if row else 1 - len(jobs))
        yield from counts(there=1 if row else 0, duplicates=len(jobs) - 1)


def id_of(element: PlannedJob | StoredItem) -> str:
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
