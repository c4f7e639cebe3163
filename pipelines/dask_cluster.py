"""A Dask cluster, as Beam's DaskRunner finds it by its flags; docs/runners.md says how one is started.

dask and distributed are packages of their own, which are imported where this runner is named.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

# How long the scheduler may take to answer, in seconds.
_ANSWER = 10
# More would let workers wait for the scheduler.
_PARTITIONS_PER_WORKER, _MOST_PARTITIONS = 4, 64
# All workers have to find the same number for it: Dask groups by Python's hash of a key.
_TEXT = "sdjax"


def missing_packages() -> str:
    """Why the runner can't be imported; as it is imported, Beam knows its flags."""
    try:
        import_module("apache_beam.runners.dask.dask_runner")
    except ImportError as error:
        return f"it needs Dask ({error}): pip install 'apache-beam[dask]'"
    return ""


def problem(options: PipelineOptions) -> str:
    """What keeps a cluster from being used, in one line; nothing if it can be."""
    if reason := missing_packages():
        return reason
    given = _given(options)
    if not given.address and not given.scheduler_file:
        return "it needs a scheduler: --dask_client_address=HOST:PORT or --dask_scheduler_file=FILE"
    try:
        with _client(options) as client:
            hashes = client.run(hash, _TEXT)
    except (OSError, ValueError) as error:
        return f"no Dask scheduler answers at {given.address or given.scheduler_file}: {error}"
    if not hashes:
        return "its scheduler has no workers: start some with `dask worker`"
    if len(set(hashes.values())) > 1:
        return "its workers have different hashes of one text: start all with the same PYTHONHASHSEED"
    return ""


def workers(options: PipelineOptions) -> int:
    """Worker processes, each of which has an engine of its own."""
    with _client(options) as client:
        return len(client.nthreads())


def runner() -> beam.runners.PipelineRunner:
    """The runner."""
    from apache_beam.runners.dask.dask_runner import DaskRunner

    return DaskRunner()


def set_partitions(options: PipelineOptions) -> None:
    """Sets how many partitions the graph begins with: all that follow are multiples, and each has its workers."""
    given = _given(options)
    if not given.npartitions and not given.partition_size:
        given.npartitions = min(_MOST_PARTITIONS, _PARTITIONS_PER_WORKER * workers(options))


def _given(options: PipelineOptions) -> Any:
    from apache_beam.runners.dask.dask_runner import DaskOptions

    return options.view_as(DaskOptions)


@contextmanager
def _client(options: PipelineOptions) -> Iterator[Any]:
    from distributed import Client

    given = _given(options)
    with Client(given.address, scheduler_file=given.scheduler_file, timeout=_ANSWER, set_as_default=False) as client:
        yield client
