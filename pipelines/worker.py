"""What a worker process holds while it works: an engine, a planner, wildcards, and its progress report.

All else in the graph is plain functions; whatever lives as long as a process is here.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipelines.config import RunConfig, RunConfigError
from pipelines.config.keys import AUTO
from pipelines.config.recorded import for_engine
from pipelines.config.sections import finds_batch_size, replaced
from pipelines.loading import library_of, load_model, make_engine, make_planner
from pipelines.preflight import job_for_all
from pipelines.progress import Reporter
from pipelines.run import Run
from sdjax import storage
from sdjax.engine.engine import Engine
from sdjax.engine.fingerprint import EngineIdentity
from sdjax.engine.passes import Bucket
from sdjax.engine.planner import Planner, open_library
from sdjax.library.opened import OpenLibrary
from sdjax.model import Model
from sdjax.text.wildcards import MAX_FILE_BYTES, NO_WILDCARDS, Wildcards, files_in, wildcards_of_files

# An engine works for minutes; planning, which takes less than a millisecond, doesn't wait for it.
_engine_lock, _planner_lock = threading.Lock(), threading.Lock()


class _Files(NamedTuple):
    """What a process opens once, for its planner and its engine: a model without weights, and the library for it."""

    model: Model
    library: OpenLibrary


def _of_any_batch_size(config: RunConfig) -> RunConfig:
    """The configuration by which a process keeps what does not depend on the batch size."""
    return replaced(config, {"engine.batch_size": AUTO})


# A process that does several runs one after the other holds the files and the model of one. Each run has a `progress`
# of its own, so that its files are listed for it.
@functools.lru_cache(maxsize=1)
def _files(config: RunConfig, progress: str) -> _Files:
    model = load_model(config, weights=False)
    return _Files(model, open_library(library_of(config), model))


@functools.lru_cache(maxsize=1)
def _engine(config: RunConfig, progress: str) -> Engine:
    """An engine of any batch size is made of the one that has loaded the model."""
    engine = _loaded(_of_any_batch_size(config), progress)
    return engine if finds_batch_size(config) else engine.with_batch_size(int(config.engine.batch_size))


@functools.lru_cache(maxsize=1)
def _loaded(config: RunConfig, progress: str) -> Engine:
    reporter = reporter_of(progress)

    def on_compile(bucket: Bucket) -> None:
        reporter.doing(f"compiling {bucket.width}x{bucket.height}")

    reporter.doing(f"loading {config.model.name}")
    with _planner_lock:
        library = _files(config, progress).library
    engine = make_engine(config, on_compile, library=library)
    reporter.doing("")
    return engine


@functools.lru_cache(maxsize=1)
def _planner(config: RunConfig, progress: str, identity: EngineIdentity) -> Planner:
    config = for_engine(config)
    return make_planner(config, *_files(_of_any_batch_size(config), progress), identity)


@contextlib.contextmanager
def engine_of(run: Run) -> Iterator[Engine]:
    """The process' engine, for one thread at a time."""
    with _engine_lock, reporting_failure(run):
        yield _engine(for_engine(run.config), run.progress)


def fitting_batch_size(run: Run) -> int:
    """The largest batch size for which this process' devices have memory, for jobs of the size that is configured.

    Raises:
      RunConfigError: if there is none.
    """
    with engine_of(run) as engine, reporting_failure(run):
        reporter = reporter_of(run.progress)
        reporter.doing("finding the batch size")
        job = job_for_all(run.config, engine.model)
        size = engine.fitting_batch_size(engine.prepare(job))
        reporter.doing("")
        if not size:
            raise RunConfigError(
                "engine.batch_size = auto: there is not enough free memory for a single image; stop what else uses "
                "it, or set a smaller width and height, or model.dtype = bfloat16"
            )
        return size


@contextlib.contextmanager
def planner_of(run: Run) -> Iterator[Planner]:
    """What plans the jobs of a run, for one thread at a time; no weights are read for it, and no device is used."""
    assert run.identity is not None, "it is read before anything is planned"
    with _planner_lock, reporting_failure(run):
        yield _planner(run.config, run.progress, run.identity)


@functools.lru_cache(maxsize=1)
def wildcards_of(folder: str | None, run_name: str) -> Wildcards:
    """The wildcards of a run, each file read once by a process."""
    if folder is None:
        return NO_WILDCARDS

    def paths() -> Iterable[str]:
        if os.path.isdir(folder):
            return files_in(folder)
        return (path.removeprefix(folder).lstrip("/") for path in storage.list_files(folder))

    def read(path: str) -> bytes:
        return storage.read_whole(storage.join(folder, *path.split("/")), MAX_FILE_BYTES + 1)

    return wildcards_of_files(paths, read, folder)


@functools.cache
def reporter_of(folder: str) -> Reporter:
    """The progress report of this process, in a folder."""
    return Reporter(folder)


@contextlib.contextmanager
def reporting_failure(run: Run) -> Iterator[None]:
    """A context that reports in plain words what goes wrong in it, and raises it as it is."""
    try:
        yield
    except Exception as error:
        reporter_of(run.progress).failed(message_of(error))
        raise


def message_of(error: Exception) -> str:
    """An error as a user reads it."""
    return str(error) if isinstance(error, ValueError | OSError) else repr(error)
