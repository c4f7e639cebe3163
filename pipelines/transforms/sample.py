"""Jobs of a shard -> images, written in the step that makes them, and their manifest rows, or rejects."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
from PIL import Image

from pipelines import storage, worker
from pipelines.config import RunConfigError
from pipelines.elements import Element, ManifestRow, PlannedJob, counts
from pipelines.records import Sizes, manifest_row
from pipelines.run import Run
from pipelines.sources.prompts import Reject, shortened
from pipelines.transforms import steps
from sdjax.engine.engine import Engine, Result
from sdjax.engine.planner import Task
from sdjax.images.encode import FORMATS, EncodeError, encode
from sdjax.images.steps import animation, strip


def batches(jobs: Iterable[PlannedJob], size: int) -> Iterator[dict[str, PlannedJob]]:
    """The jobs of a shard in batches, by id, which are the same in whatever order they come."""
    by_id = {job.id: job for job in jobs}
    ids = sorted(by_id)
    for start in range(0, len(ids), size):
        yield {image_id: by_id[image_id] for image_id in ids[start : start + size]}


def sample(jobs: Mapping[str, PlannedJob], run: Run) -> Iterator[tuple[Mapping[str, Any], Sizes | str]]:
    """Makes the images of a batch and writes each as soon as it is there.

    Gives their metadata, and the sizes of their files or what went wrong.

    Raises:
      RunConfigError: if the ids were worked out on a machine on which they would be others.
    """
    reporter = worker.reporter_of(run.progress)
    failed: list[tuple[str, str]] = []
    with worker.engine_of(run) as engine:
        for result in engine.run(_tasks(engine, jobs, failed)):
            reporter.doing("")
            written = _write(result, run)
            reporter.add("failed" if isinstance(written, str) else "made")
            yield result.metadata, written
    reporter.doing("")
    for image_id, problem in failed:
        reporter.add("failed")
        yield {"id": image_id}, problem


def _tasks(engine: Engine, jobs: Mapping[str, PlannedJob], failed: list[tuple[str, str]]) -> Iterator[Task]:
    """The jobs as the engine takes them; adds those of `failed`, with the reason, that can't be done any more."""
    for image_id, planned in jobs.items():
        try:
            task = engine.prepare(planned.to_job(), planned.notes)
        except Exception as error:  # what could be read when it was planned can be gone
            failed.append((image_id, worker.message_of(error)))
            continue
        if task.id == image_id:
            yield task
        elif task.metadata["pictures"] != planned.input_images:
            failed.append((image_id, "a picture has changed since this was planned"))
        else:
            raise RunConfigError(
                f"this worker's fingerprint, {dict(engine.fingerprint)}, is not that of the worker which planned "
                "its images; all workers of a run need devices of one kind and the same versions"
            )


def _write(result: Result, run: Run) -> Sizes | str:
    """Writes an image and gives the sizes of its files; says why, if it can't be one."""
    if result.problem:
        return str(result.problem)
    if not result.finite:
        narrow = result.metadata["dtype"] != "float32"
        hint = "; try --set dtype=float32" if narrow else "; its numbers grow beyond float32, by guidance or weights"
        return f"the network gave NaN or infinity in {result.metadata['dtype']}{hint}"
    try:
        data = encode(result.image, result.metadata, run.config.format)
    except EncodeError as error:
        return str(error)
    # Before the image, whose being there says that all is done.
    kept = _write_previews(result, run) if result.previews else ()
    storage.write_whole(storage.image_path(run.out, result.metadata["id"], FORMATS[run.config.format].extension), data)
    return Sizes(len(data), *kept)


def _write_previews(result: Result, run: Run) -> tuple[int, int]:
    """Writes the kept steps of an image, as a strip and as an animation; gives the sizes of both."""
    metadata, image = result.metadata, result.image
    last = result.previews[-1].clean
    if image.shape != last.shape:  # it was made larger, or put back into its input image
        image = last if metadata["only_masked"] else np.asarray(Image.fromarray(image).resize(last.shape[1::-1]))
    title = f"{metadata['prompt']} ({metadata['sampler']}, {metadata['steps_taken']} steps, seed {metadata['seed']})"
    kind = run.config.animation
    both = strip(result.previews, image, title), animation(result.previews, image, kind)
    for extension, data in zip(("png", kind), both, strict=True):
        storage.write_whole(storage.steps_path(run.out, metadata["id"], extension), data)
    return len(both[0]), len(both[1])


def sampled(_: str, jobs: Iterable[PlannedJob], run: Run) -> Iterator[Element]:
    """The jobs of a shard -> manifest rows, a reject for each image that could not be made, and counts."""
    extension = FORMATS[run.config.format].extension
    for batch in batches(jobs, run.config.host_batch):
        for metadata, written in sample(batch, run):
            image_id = metadata["id"]
            if isinstance(written, str):
                job = batch[image_id]
                yield Reject(job.source, job.line, shortened(job.job["prompt"]), written)
                yield from counts(failed=1)
            else:
                yield ManifestRow(image_id, manifest_row(image_id, metadata, extension, written))
                yield from counts(made=1)


class Sample(beam.PTransform):
    """Shards -> manifest rows, rejects and counts."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """A shard is sampled by one worker."""
        return shards | "Shard" >> steps.groups(sampled, self._run)
