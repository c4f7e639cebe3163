"""The Python interface: a model, jobs, results."""

import functools
from collections.abc import Sequence

import jax

from sdjax.engine import Engine, Result
from sdjax.job import Job
from sdjax.model import Model


@functools.lru_cache(maxsize=1)
def _engine(model: Model, batch_size: int, devices: tuple[jax.Device, ...] | None) -> Engine:
    """The last engine, with its compiled programs; one model at a time is held on the devices."""
    return Engine(model, batch_size=batch_size, devices=devices)


def generate(
    model: Model, jobs: Sequence[Job], *, batch_size: int = 4, devices: Sequence[jax.Device] | None = None
) -> list[Result]:
    """Makes one image for each job, in the order of the jobs.

    Programs that were compiled for a model, batch size and devices are used again by the next calls.

    Args:
      model: from `load`.
      jobs: each with a seed.
      batch_size: images per device in a compiled program; the bits of an image depend on it, and on nothing else
        about the other jobs.
      devices: all local ones if None.

    Raises:
      JobError: naming the position of a job that the model can't do, before anything is computed.
      FloatingPointError: if an image is not finite.
    """
    engine = _engine(model, batch_size, None if devices is None else tuple(devices))
    tasks = []
    for index, job in enumerate(jobs):
        try:
            tasks.append(engine.prepare(job))
        except ValueError as error:
            raise type(error)(f"job {index}: {error}") from error
    unique = {task.id: task for task in tasks}
    results = {result.metadata["id"]: result for result in engine.run(unique.values())}
    for index, task in enumerate(tasks):
        if not results[task.id].finite:
            raise FloatingPointError(
                f"job {index} ({task.job.prompt!r}): the network gave NaN or infinity; "
                f"dtype {model.dtype} may be too narrow for this checkpoint, try float32"
            )
    return [results[task.id] for task in tasks]
