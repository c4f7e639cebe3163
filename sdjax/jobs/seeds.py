"""Seeds of rows that name none, and of their repeats."""

import hashlib
from collections.abc import Mapping
from typing import Any

from sdjax.jobs.image_id import canonical_json
from sdjax.jobs.job import RANDOM_SEED, Job, changed

# Of derived seeds: so many that no two of a large run fall together, within the whole numbers of any JSON reader. torch
# sees the low 32 bits of a seed alone.
_SEED_BYTES = 6


def derived_seed(run_seed: int, row: Mapping[str, Any], repeat: int) -> int:
    """The seed of a row that names none: from the run's seed, the fields of the row itself, and its repeat number."""
    text = f"{run_seed}\n{canonical_json(row)}\n{repeat}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_SEED_BYTES])


def repeated(job: Job, row: Mapping[str, Any], repeats: int, run_seed: int) -> tuple[Job, ...]:
    """The job `repeats` times, each with its seed: one after the other from the job's own, or derived.

    Args:
      job: what is to be made.
      row: its fields in their canonical form, without those that the run's configuration adds: they have no say in
        derived seeds, so runs of one file with other settings begin from the same noise.
      repeats: at least 1.
      run_seed: of the derived seeds.

    Raises:
      JobError: if the last seed would be too large.
    """
    if job.seed is None:
        return tuple(changed(job, seed=derived_seed(run_seed, row, repeat)) for repeat in range(repeats))
    if job.seed == RANDOM_SEED:
        return (job,) * repeats
    return tuple(changed(job, seed=job.seed + repeat) for repeat in range(repeats))
