"""Prompt files -> rows -> planned jobs, or rejects."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from pipelines import worker
from pipelines.elements import Element, PlannedJob, PromptFile, counts
from pipelines.run import Run
from pipelines.sources import input_images
from pipelines.sources.prompts import JobRequest, PromptFileError, Reject, Row, parse, read_rows, shortened
from pipelines.transforms import steps
from sdjax import storage
from sdjax.engine.planner import Planner

_KEY_DIGITS = 16


def rows_of(path: str, run: Run) -> Iterator[Row]:
    """The rows of a prompt file; one that breaks off ends with a row of line 0 that says so."""
    try:
        for row in read_rows(lambda: storage.open_binary(path), path):
            worker.reporter_of(run.progress).add("rows")
            yield row
    except PromptFileError as error:
        yield Row(path, 0, None, "", str(error))


def plan(row: Row, run: Run) -> list[PlannedJob] | Reject:
    """The images that a row asks for, or why there are none."""
    requests = parse(row, run.config, run.name, worker.wildcards_of(run.config.library.wildcards, run.name))
    if isinstance(requests, Reject):
        return requests
    with worker.planner_of(run) as planner:
        try:
            jobs = [_planned(planner, request, row) for request in requests]
        except Exception as error:  # no row, whatever is in it, may stop the others
            return Reject(row.source, row.line, row.text, shortened(worker.message_of(error)))
    worker.reporter_of(run.progress).add("wanted", len(jobs))
    return jobs


def _planned(planner: Planner, request: JobRequest, row: Row) -> PlannedJob:
    """What is needed further: input images are read again when the image is made."""
    task = planner.plan(input_images.located(request.job, row.source), request.notes)
    metadata = task.metadata
    return PlannedJob(
        id=task.id,
        job=task.job.given,
        batch_key=task.short_batch_key,
        notes=request.notes,
        input_images=metadata["pictures"],
        source=row.source,
        line=row.line,
        cut=bool(metadata["prompt_cut"] or metadata["negative_prompt_cut"]),
    )


def outcome_of(row: Row, run: Run) -> Iterator[Element]:
    """The images that a row asks for, or a reject; and counts."""
    jobs = plan(row, run)
    if isinstance(jobs, list):
        yield from jobs
        yield from counts(rows=1, wanted=len(jobs), cut_prompts=sum(job.cut for job in jobs))
    else:
        yield jobs
        yield from counts(broken_files=1) if jobs.line == 0 else counts(rows=1, rejected_rows=1)


def read(_: str, files: Iterable[PromptFile], run: Run) -> Iterator[Element]:
    """The rows of prompt files."""
    for file in files:
        yield from rows_of(file.path, run)


def plan_rows(_: str, rows: Iterable[Row], run: Run) -> Iterator[Element]:
    """What rows ask for."""
    for row in rows:
        yield from outcome_of(row, run)


def key_of(element: Any) -> str:
    """A short hash by which files and rows are spread over the workers."""
    place = f"{element.source}\n{element.line}" if isinstance(element, Row) else element.path
    return hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()[:_KEY_DIGITS]


class ReadAndPlan(beam.PTransform):
    """Prompt files -> planned jobs, rejects and counts."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def expand(self, files: beam.PCollection) -> beam.PCollection:
        """Files, and then rows, are grouped by a key of their own, which spreads them over the workers."""
        return (
            files
            | "FileKey" >> steps.with_keys(key_of)
            | "SpreadFiles" >> beam.GroupByKey()
            | "Read" >> steps.groups(read, self._run)
            | "RowKey" >> steps.with_keys(key_of)
            | "SpreadRows" >> beam.GroupByKey()
            | "Plan" >> steps.groups(plan_rows, self._run)
        )
