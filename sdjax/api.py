"""The Python interface: a model, jobs, results."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from sdjax.adapters.files import AdapterError
from sdjax.engine.engine import Engine, Result
from sdjax.jobs.input_images import Read, read_file
from sdjax.jobs.job import Job, JobError
from sdjax.library.classifier import Classifier
from sdjax.library.finding import FileState, states_of
from sdjax.library.library import Library
from sdjax.model import Model


class _Made(NamedTuple):
    """The engine of the last call; and what was given, with the files as they were then."""

    engine: Engine
    given: tuple[Library | None, Read, tuple[FileState, ...]]


# By what the engine was made of.
_last: dict[tuple[Any, ...], _Made] = {}


def _engine(
    model: Model,
    batch_size: int,
    devices: tuple[jax.Device, ...] | None,
    classifier: Classifier | None,
    library: Library | None,
    read_image: Read,
) -> Engine:
    """The last engine, with its compiled programs and the files as they are now, or a new one in its place."""
    place = library.place("classifier") if library and not classifier else None
    guide = id(classifier) if classifier else place and (place, states_of(place))
    key = (model, batch_size, devices, guide)
    given = library, read_image, library.states() if library else ()
    if key not in _last:
        _last.clear()  # first: the devices hold one model at a time
        engine = Engine(
            model, batch_size=batch_size, devices=devices, classifier=classifier, library=library, read_image=read_image
        )
        _last[key] = _Made(engine, given)
    elif _last[key].given != given:
        _last[key].engine.list_files(library, read_image)
        _last[key] = _last[key]._replace(given=given)
    return _last[key].engine


def generate(
    model: Model,
    jobs: Sequence[Job],
    *,
    batch_size: int = 4,
    devices: Sequence[jax.Device] | None = None,
    classifier: Classifier | None = None,
    library: Library | None = None,
    read_image: Read = read_file,
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
      classifier: for jobs with a `classifier_scale`; in the place of the library's.
      library: the files that jobs and prompts can name; its folders are listed again where a file in them came, went or
        changed since the last call. None has none.
      read_image: gives the bytes of an input image by its path, raising `OSError` or `ValueError` that says why it
        can't; by itself it reads files of this machine.

    Raises:
      AdapterError: naming the position of a job whose adapters can't be used, before anything is computed.
      JobError: naming the position of a job that the model can't do, before anything is computed; or later, if a file
        that it takes is gone by then.
      FloatingPointError: if an image is not finite.
      MemoryError: if one takes more memory than there is.
    """
    engine = _engine(model, batch_size, None if devices is None else tuple(devices), classifier, library, read_image)
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
