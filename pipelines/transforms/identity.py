"""The identity of a run's engines, read where they are before anything is planned.

Where a runner works in other processes, maybe on other machines, a pipeline of one element asks there: its one step
makes the engine of its worker, and leaves the identity as a file in the output.
"""

from collections.abc import Iterator

import apache_beam as beam

from pipelines import runners, worker
from pipelines.config.sections import finds_batch_size
from pipelines.elements import Element, OutputPart
from pipelines.run import Run
from pipelines.sinks.output import temporary_name
from pipelines.transforms import steps
from sdjax.engine.fingerprint import EngineIdentity
from sdjax.storage import open_store

# What the step leaves for the process that started it.
_IDENTITY = "identity"


def read_identity(run: Run, flags: list[str]) -> EngineIdentity:
    """The identity of the engines with which a run is made.

    Args:
      run: of which the identity is not known yet.
      flags: Beam's own, of the run.

    Raises:
      RunnerError: if a runner fails, or leaves the step out.
    """
    pipeline = runners.pipeline(flags)
    if runners.in_this_process(pipeline):
        return identity_here(run)
    build(pipeline, run)
    runners.finish(pipeline)
    return written_identity(run)


def build(root: beam.Pipeline, run: Run) -> None:
    """Adds the one step to `root`."""
    _ = root | "Start" >> steps.create([OutputPart(0)]) | "Identity" >> steps.each(write_identity, run)


def identity_here(run: Run) -> EngineIdentity:
    """The identity of this process' engine, with the batch size that fits where that is to be found out."""
    if finds_batch_size(run.config):
        run = run.with_batch_size(worker.fitting_batch_size(run))
    with worker.engine_of(run) as engine:
        return engine.identity


def write_identity(_: OutputPart, run: Run) -> Iterator[Element]:
    """Writes it into the output."""
    identity = identity_here(run)
    with worker.reporting_failure(run):
        open_store(run.out).put(temporary_name(run.name, _IDENTITY), identity.to_json().encode())
    yield from ()


def written_identity(run: Run) -> EngineIdentity:
    """What the step left; raises `RunnerError` if a runner didn't come there."""
    store, name = open_store(run.out), temporary_name(run.name, _IDENTITY)
    if not store.exists(name):
        raise runners.RunnerError(
            "the runner says that it is done, but its workers left nothing in the output: name one that all of them "
            "reach, or take another runner"
        )
    return EngineIdentity.from_json(store.get(name))
