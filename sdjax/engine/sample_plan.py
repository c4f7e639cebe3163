"""How a job is sampled: what the UNet is asked in which evaluations, its accelerations, the compiled lengths."""

import math

import numpy as np

from sdjax.diffusion.tableau import Table
from sdjax.engine import prompt_arrays
from sdjax.engine.accelerations import Accelerations
from sdjax.jobs.job import Job, JobError
from sdjax.model import Model
from sdjax.models import UNet, UNetConfig
from sdjax.models.token_merging import LEAST_SIDE
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


# --- Accelerations ---


def accelerations_of(job: Job, model: Model) -> Accelerations:
    """What of a resolved job's accelerations is compiled, before it is known whether T-GATE's gate is reached.

    Raises:
      JobError: if they can't be had with this model.
    """
    found = Accelerations()
    names = [name for name in ("deep_cache_interval", "token_merging_ratio", "gate_step") if name in job.given]
    if not names:
        return found
    if not isinstance(model.unet, UNet):
        raise JobError(f"{names[0]} = {getattr(job, names[0])}: the UNet of {model.family.name} can't do it")
    if job.deep_cache_interval > 1:
        found = found._replace(deep_cache_branch=_deep_cache_branch(job, model.unet.config))
    if job.token_merging_ratio:
        size = _merged_size(job, model)
        found = found._replace(merged_size=size, merging_ratio=job.token_merging_ratio)
    return found


def _deep_cache_branch(job: Job, config: UNetConfig) -> int:
    most = config.skip_connections - 1
    if job.deep_cache_branch > most:
        raise JobError(
            f"deep_cache_branch = {job.deep_cache_branch}: this UNet has {most + 1} skip connections; expected a "
            f"number from 0 to {most}"
        )
    return job.deep_cache_branch


def _merged_size(job: Job, model: Model) -> tuple[int, int]:
    """Rows and columns of the UNet's largest feature maps that have self-attention."""
    assert job.height is not None and job.width is not None, "the job is not resolved"
    factor = model.vae.config.factor * 2**model.unet.config.largest_attention_level
    rows, columns = (math.ceil(side / factor) for side in (job.height, job.width))
    if min(rows, columns) < LEAST_SIDE:
        raise JobError(
            f"token_merging_ratio = {job.token_merging_ratio}: at {job.width}x{job.height} pixels the UNet's attention "
            f"has {columns}x{rows} tokens; expected {LEAST_SIDE} or more along each side"
        )
    return rows, columns


def gate_of(job: Job, table: Table, guided: tuple[int, int] | None, has_guidance: bool, second: bool) -> int | None:
    """The first evaluation behind T-GATE's gate; None if the job has none, or takes no step.

    Args:
      job: resolved.
      table: of its sampler.
      guided: the first evaluation that is guided, and the one after the last; None if all or none are.
      has_guidance: whether any is.
      second: whether it is the second pass of a job, which may end before the gate.

    Raises:
      JobError: if nothing is guided before the gate, or nothing comes behind it.
    """
    if job.gate_step is None or not table.steps:
        return None
    asked = f"gate_step = {job.gate_step}"
    if not has_guidance:
        raise JobError(f"{asked}: expected guidance, which it ends; guidance_scale = {job.guidance_scale:g} has none")
    behind = np.flatnonzero(table.step >= job.gate_step)
    if not len(behind):
        if second:
            return None
        raise JobError(f"{asked}: of {int(table.step[-1]) + 1} steps none comes behind it; expected less")
    if guided is not None and guided[0] >= behind[0]:
        raise JobError(f"{asked}: with guidance_start = {job.guidance_start} no step before it is guided")
    return int(behind[0])
