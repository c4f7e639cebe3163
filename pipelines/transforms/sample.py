"""Jobs of a shard -> images, written in the step that makes them, and their manifest rows, or rejects."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam

from pipelines import worker
from pipelines.config import RunConfigError
from pipelines.elements import Element, ManifestRow, PlannedJob, counts
from pipelines.progress import Reporter
from pipelines.run import Run, sink_of
from pipelines.sinks.sink import WriteResult
from pipelines.sources.prompts import Reject, shortened
from pipelines.transforms import steps
from sdjax.engine.engine import Engine, Result
from sdjax.engine.fingerprint import EngineIdentity
from sdjax.engine.passes import Task


def batches(jobs: Iterable[PlannedJob], size: int) -> Iterator[dict[str, PlannedJob]]:
    """The jobs of a shard in batches, by id, which are the same in whatever order they come."""
    by_id = {job.id: job for job in jobs}
    ids = sorted(by_id)
    for start in range(0, len(ids), size):
        yield {image_id: by_id[image_id] for image_id in ids[start : start + size]}


def sample(groups: Iterable[Mapping[str, PlannedJob]], run: Run) -> Iterator[WriteResult]:
    """Makes the images of batches that can share compiled ones, and hands each to the sink as soon as it is there.

    The devices go on from one batch to the next without a pause, and the sink is given one batch at a time.
    Gives their manifest rows, or what went wrong.

    Raises:
      RunConfigError: if this worker would make other images than those that were planned.
    """
    reporter = worker.reporter_of(run.progress)
    failed: list[WriteResult] = []
    batch_of: dict[str, int] = {}

    def planned() -> Iterator[PlannedJob]:
        for number, jobs in enumerate(groups):
            batch_of.update(dict.fromkeys(jobs, number))
            yield from jobs.values()

    with worker.engine_of(run) as engine:
        check_identity(engine.identity, run)
        results = _images(engine.run(_tasks(engine, planned(), failed)), reporter, failed)
        for _, of_batch in itertools.groupby(results, lambda result: batch_of[result.metadata["id"]]):
            for written in sink_of(run).write(of_batch):
                reporter.add("failed" if written.problem else "made")
                yield written
    reporter.doing("")
    for problem in failed:
        reporter.add("failed")
        yield problem


def check_identity(own: EngineIdentity, run: Run) -> None:
    """Raises `RunConfigError` if an engine of this identity is not one with which the run's images were planned."""
    assert run.identity is not None, "it is read before anything is planned"
    if differences := own.differences(run.identity):
        both = ", ".join(f"{name} = {here!r} (planned: {there!r})" for name, (here, there) in differences.items())
        raise RunConfigError(
            f"this worker differs from the one for which the run was planned: {both}; all workers of a run need "
            "devices of one kind, the same versions and the same model"
        )


def _tasks(engine: Engine, jobs: Iterable[PlannedJob], failed: list[WriteResult]) -> Iterator[Task]:
    """The jobs as the engine takes them; adds those of `failed`, with the reason, that can't be done any more."""
    for planned in jobs:
        image_id = planned.id
        try:
            task = engine.prepare(planned.to_job(), planned.notes)
        except Exception as error:  # what could be read when it was planned can be gone
            failed.append(WriteResult(image_id, None, worker.message_of(error)))
            continue
        if task.id == image_id:
            yield task
        elif task.metadata["pictures"] != planned.input_images:
            failed.append(WriteResult(image_id, None, "an image has changed since this was planned"))
        else:  # of the same model, fingerprint and input images
            reason = "an adapter, ControlNet, upscaler or other file that it names has changed since this was planned"
            failed.append(WriteResult(image_id, None, reason))


def _images(results: Iterable[Result], reporter: Reporter, failed: list[WriteResult]) -> Iterator[Result]:
    """The results that are images; adds those to `failed`, with the reason, that are none."""
    for result in results:
        reporter.doing("")
        if problem := _problem_of(result):
            failed.append(WriteResult(result.metadata["id"], None, problem))
        else:
            yield result


def _problem_of(result: Result) -> str | None:
    """Why a result is no image; None if it is one."""
    if result.problem:
        return str(result.problem)
    if not result.finite:
        narrow = result.metadata["dtype"] != "float32"
        beyond = "; its numbers grow beyond float32, by guidance or weights"
        hint = "; try --set model.dtype=float32" if narrow else beyond
        return f"the network gave NaN or infinity in {result.metadata['dtype']}{hint}"
    return None


def sampled(_: str, jobs: Iterable[PlannedJob], run: Run) -> Iterator[Element]:
    """The jobs of a shard -> manifest rows, a reject for each image that could not be made, and counts."""
    by_id = {job.id: job for job in jobs}
    for image_id, row, problem in sample(batches(by_id.values(), run.config.run.host_batch), run):
        if row is None:
            job = by_id[image_id]
            yield Reject(job.source, job.line, shortened(job.job["prompt"]), problem or "")
            yield from counts(failed=1)
        else:
            yield ManifestRow(image_id, row)
            yield from counts(made=1)


class Sample(beam.PTransform):
    """Shards -> manifest rows, rejects and counts."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """A shard is sampled by one worker."""
        return shards | "Shard" >> steps.groups(sampled, self._run)
