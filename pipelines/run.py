"""What every worker of a run has to know, and how it tells the process that started the run what it does."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pipelines.config import RunConfig
from pipelines.progress import Reporter
from pipelines.sinks import open_sink
from pipelines.sinks.sink import Sink

# What the steps of the graph give. One stream carries records of all kinds, and each step after it takes its own, since
# several outputs of one step are lost by some runners; as are state, side inputs and what a bundle gives at its end.
#   image   an id and the image wanted       group   first digits of ids, number of rows   reject  why there is no image
#   row     an id and its manifest row       count   of what, how many
Record = tuple[Literal["image", "row", "group", "reject", "count"], Any]


class Run(NamedTuple):
    """What every worker of a run has to know.

    progress: a folder of the machine that started the run.
    name: of this run, unlike any other's; seeds that are to be drawn at random are drawn from it.
    shards: into how many parts the sampling is cut.
    """

    config: RunConfig
    out: str
    progress: str
    name: str
    shards: int


def sink_of(run: Run) -> Sink:
    """Where the images of a run go."""
    return open_sink(run.out, run.config.format, run.config.animation)


@functools.cache
def reporter_of(folder: str) -> Reporter:
    """The account of this process in a folder."""
    return Reporter(folder)


@contextlib.contextmanager
def reporting_failure(run: Run) -> Iterator[None]:
    """A context that tells in plain words what goes wrong in it, and raises it as it is."""
    try:
        yield
    except Exception as error:
        reporter_of(run.progress).failed(said(error))
        raise


def said(error: Exception) -> str:
    """An error as a user reads it."""
    return str(error) if isinstance(error, ValueError | OSError) else repr(error)
