"""What tests of the engine share."""

from collections.abc import Sequence

import numpy as np

import sdjax


def make(engine: sdjax.Engine, jobs: Sequence[sdjax.Job]) -> list[sdjax.Result]:
    """One result for each job, in their order."""
    tasks = [engine.prepare(job) for job in jobs]
    results = {result.metadata["id"]: result for result in engine.run(tasks)}
    return [results[task.id] for task in tasks]


def same(ours: Sequence[sdjax.Result], theirs: Sequence[sdjax.Result]) -> bool:
    """Whether pictures are the same to the last bit, and what is said of them too."""
    return all(
        one.metadata == other.metadata and np.array_equal(one.image, other.image)
        for one, other in zip(ours, theirs, strict=True)
    )
