"""The Python interface: a model, jobs, results."""

from collections.abc import Sequence
from typing import Any

import jax

from sdjax.adapters.files import AdapterError
from sdjax.adapters.library import Library
from sdjax.classifier import Classifier
from sdjax.engine import Engine, Result
from sdjax.job import Job, JobError
from sdjax.model import Model
from sdjax.picture_library import Pictures

# The engine of the last call, by what it was made of.
_last: dict[tuple[Any, ...], Engine] = {}


def _engine(
    model: Model,
    batch_size: int,
    devices: tuple[jax.Device, ...] | None,
    classifier: Classifier | None,
    library: Library | None,
    pictures: Pictures | None,
) -> Engine:
    """The last engine, with its compiled programs, or a new one in its place."""
    key = (model, batch_size, devices, id(classifier) if classifier else None, library, pictures)
    if key not in _last:
        _last.clear()  # first: the devices hold one model at a time
        _last[key] = Engine(
            model, batch_size=batch_size, devices=devices, classifier=classifier, library=library, pictures=pictures
        )
    return _last[key]


def generate(
    model: Model,
    jobs: Sequence[Job],
    *,
    batch_size: int = 4,
    devices: Sequence[jax.Device] | None = None,
    classifier: Classifier | None = None,
    library: Library | None = None,
    pictures: Pictures | None = None,
) -> list[Result]:
    """Makes one image for each job, in the order of the jobs.

    The model stays on the devices, with its compiled programs, until a call with another model, batch size, devices,
    classifier, library or pictures.

    Args:
      model: from `load`.
      jobs: each with a seed.
      batch_size: images per device in a compiled program; the bits of an image depend on it, and on nothing else
        about the other jobs.
      devices: all local ones if None.
      classifier: for jobs with a `classifier_scale`.
      library: of adapters, for jobs and prompts that name some; files that are put into its folders later are not seen.
      pictures: where jobs' pictures come from, and what sees them; None reads files of this machine.

    Raises:
      AdapterError: naming the position of a job whose adapters can't be used, before anything is computed.
      JobError: naming the position of a job that the model can't do, before anything is computed; or later, if a file
        that it takes is gone by then.
      FloatingPointError: if an image is not finite.
      MemoryError: if one takes more memory than there is.
    """
    engine = _engine(model, batch_size, None if devices is None else tuple(devices), classifier, library, pictures)
    tasks = []
    for index, job in enumerate(jobs):
        try:
            tasks.append(engine.prepare(job))
        except (JobError, AdapterError) as error:
            raise type(error)(f"job {index}: {error}") from error
    unique = {task.id: task for task in tasks}
    results = {result.metadata["id"]: result for result in engine.run(unique.values())}
    for index, task in enumerate(tasks):
        if problem := results[task.id].problem:
            raise type(problem)(f"job {index}: {problem}") from problem
        if not results[task.id].finite:
            raise FloatingPointError(
                f"job {index} ({task.job.prompt!r}): the network gave NaN or infinity; "
                f"dtype {model.dtype} may be too narrow for this checkpoint, try float32"
            )
    return [results[task.id] for task in tasks]
