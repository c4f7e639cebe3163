"""How a job is sampled: what the UNet is asked in which evaluations, and the lengths that are compiled."""

import math

import numpy as np

from sdjax.diffusion.tableau import Table
from sdjax.engine import prompt_arrays
from sdjax.jobs.job import Job, JobError
from sdjax.text.tokenize_prompt import TokenizedPrompt

# Lengths of compiled tables: a job's evaluations are rounded up to the next.
_EVALUATIONS = (64, 128, 256, 512, 1024, 2048)
# Weights of a prompt's parts that add up to less have no mean.
_LEAST_SUM = 1e-3


def branches_of(
    job: Job, read: TokenizedPrompt, table: Table
) -> tuple[prompt_arrays.PromptSelection, tuple[int, int] | None]:
    """The prompt's parts and the negative prompt, those that count; and the evaluations that are guided, if not all."""
    parts = len(read.part_weights)
    steps = int(table.step[-1]) + 1
    # Rounded down, but for what decimals lose: 0.29 of 100 is 29.
    begin, end = (math.floor(round(share * steps, 9)) for share in (job.guidance_start, job.guidance_end))
    whole = begin == 0 and end == steps
    if not table.steps:
        whole = True
    elif begin >= end:
        raise JobError(
            f"guidance_start = {job.guidance_start}, guidance_end = {job.guidance_end}: of {steps} steps none is "
            "within; guidance_scale = 1 is without guidance"
        )
    if whole and job.guidance_scale == 0:
        return prompt_arrays.select(read, (parts,), guided=False), None
    if read.part_weights == (1.0,) and job.guidance_scale == 1:
        return prompt_arrays.select(read, (0,), guided=False), None
    if not whole and abs(sum(read.part_weights)) < _LEAST_SUM:
        raise JobError(
            "the weights of the prompt's parts add up to about 0: such a prompt needs guidance in every step"
        )
    guided = None
    if not whole:
        within = np.flatnonzero((table.step >= begin) & (table.step < end))
        guided = (int(within[0]), int(within[-1]) + 1)
    return prompt_arrays.select(read, tuple(range(parts + 1)), guided=True), guided


def rounded_evaluations(table: Table) -> int:
    """The length of the compiled table that a table fits in."""
    return next(length for length in _EVALUATIONS if length >= table.evaluations)


def host_noise_places(job: Job, table: Table) -> int | None:
    """How many times noise of the host is added besides the first; None if it is drawn on the device."""
    if job.noise_source == "threefry":
        return None
    return rounded_evaluations(table) + 1 if table.draws.any() else 0
