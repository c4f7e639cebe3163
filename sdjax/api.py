"""The Python interface: a model, jobs, results."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from sdjax.adapters.files import AdapterError
from sdjax.adapters.library import Library
from sdjax.engine.engine import Engine, Result
from sdjax.jobs.job import Job, JobError
from sdjax.library.classifier import Classifier
from sdjax.library.finding import state_of
from sdjax.library.picture_library import Pictures
from sdjax.model import Model


class _Made(NamedTuple):
    """The engine of the last call; and the folders that were given, with their files as they were then."""

    engine: Engine
    files: tuple[Any, ...]


# By what the engine was made of.
_last: dict[tuple[Any, ...], _Made] = {}


def _engine(
    model: Model,
    batch_size: int,
    devices: tuple[jax.Device, ...] | None,
    classifier: Classifier | None,
    library: Library | None,
    pictures: Pictures | None,
) -> Engine:
    """The last engine, with its compiled programs and the files as they are now, or a new one in its place."""
    key = (model, batch_size, devices, id(classifier) if classifier else None)
    files = _files(library, pictures)
    if key not in _last:
        _last.clear()  # first: the devices hold one model at a time
        engine = Engine(
            model, batch_size=batch_size, devices=devices, classifier=classifier, library=library, pictures=pictures
        )
        _last[key] = _Made(engine, files)
    elif _last[key].files != files:
        _last[key].engine.list_files(library, pictures)
        _last[key] = _last[key]._replace(files=files)
    return _last[key].engine


def _files(library: Library | None, pictures: Pictures | None) -> tuple[Any, ...]:
    """What was given, and what is in it now."""
    adapters = library or Library()
    seen_with = pictures or Pictures()
    folders = (
        *(adapters.loras, adapters.hypernetworks, adapters.embeddings),
        *(seen_with.controlnet_folder, seen_with.depth_model, seen_with.upscaler_folder),
    )
    return library, pictures, *(state_of(folder) for folder in folders if folder is not None)


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

    The model stays on the devices, with its compiled programs, until a call with another model, batch size, devices or
    classifier.

    Args:
      model: from `load`.
      jobs: each with a seed.
      batch_size: images per device in a compiled program; the bits of an image depend on it, and on nothing else
        about the other jobs.
      devices: all local ones if None.
      classifier: for jobs with a `classifier_scale`.
      library: of adapters, for jobs and prompts that name some; its folders are listed again where a file in them came,
        went or changed since the last call.
      pictures: where jobs' pictures come from, and what sees them, likewise; None reads files of this machine.

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
