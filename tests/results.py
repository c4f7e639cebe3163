"""What tests of the engine share."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

import sdjax
from sdjax.engine.passes import Task


def make(engine: sdjax.Engine, jobs: Sequence[sdjax.Job]) -> list[sdjax.Result]:
    """One result for each job, in their order."""
    tasks = [engine.prepare(job) for job in jobs]
    results = {result.metadata["id"]: result for result in engine.run(tasks)}
    return [results[task.id] for task in tasks]


def taken_for_the_first(engine: sdjax.Engine, jobs: Iterable[sdjax.Job]) -> int:
    """How many of many jobs an engine has taken when it gives its first result."""
    taken = []

    def tasks() -> Iterator[Task]:
        for job in jobs:
            taken.append(job)
            yield engine.prepare(job)

    next(engine.run(tasks()))
    return len(taken)


def same(ours: Sequence[sdjax.Result], theirs: Sequence[sdjax.Result]) -> bool:
    """Whether images are the same to the last bit, and what is said of them too."""
    return all(
        one.metadata == other.metadata and np.array_equal(one.image, other.image)
        for one, other in zip(ours, theirs, strict=True)
    )
