"""Samplers formulated in sigma, as in Karras et al. 2022 (arXiv:2206.00364) and k-diffusion.

`slope` is (latents - denoised) / sigma, the noise that the network found.
"""

import itertools
import math

import numpy as np

from sdjax.diffusion.samplers.sampler_run import SamplerRun, ancestral, lagrange_integrals
from sdjax.diffusion.schedules import karras_sigmas
from sdjax.diffusion.tableau import Vector


def euler(run: SamplerRun) -> Vector:
    """Karras et al. 2022, algorithm 2 without the correction."""
    x = run.start
    for step in run:
        x, now, timestep = run.churned(x, step)
        slope = (x - run.denoise(x, now, timestep)) / now
        x = x + slope * (step.after - now)
    return x


def euler_ancestral(run: SamplerRun) -> Vector:
    """k-diffusion, `sample_euler_ancestral`."""
    x = run.start
    for step in run:
        denoised = run.denoise(x, step.now, step.timestep)
        down, up = ancestral(step.now, step.after, run.eta)
        x = x + (x - denoised) / step.now * (down - step.now)
        if up > 0:
            x = x + run.noise() * up
    return x


def heun(run: SamplerRun) -> Vector:
    """Karras et al. 2022, algorithm 2."""
    x = run.start
    for step in run:
        x, now, timestep = run.churned(x, step)
        slope = (x - run.denoise(x, now, timestep)) / now
        following = None if step.last else float(run.steps.timesteps[step.number + 1])
        x = _corrected(run, x, slope, now, step.after, following)
    return x


def _corrected(
    run: SamplerRun, x: Vector, slope: Vector, now: float, after: float, timestep_after: float | None = None
) -> Vector:
    """A step of Heun's method; a plain Euler step if it ends at sigma 0."""
    ahead = x + slope * (after - now)
    if after == 0:
        return ahead
    slope_ahead = (ahead - run.denoise(ahead, after, timestep_after)) / after
    return x + (slope + slope_ahead) * ((after - now) / 2)


def dpm_2(run: SamplerRun) -> Vector:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1) as k-diffusion has it."""
    x = run.start
    for step in run:
        x, now, timestep = run.churned(x, step)
        slope = (x - run.denoise(x, now, timestep)) / now
        x = _by_midpoint(run, x, slope, now, step.after)
    return x


def dpm_2_ancestral(run: SamplerRun) -> Vector:
    """k-diffusion, `sample_dpm_2_ancestral`: a step to sigma_down, then noise of deviation sigma_up."""
    x = run.start
    for step in run:
        slope = (x - run.denoise(x, step.now, step.timestep)) / step.now
        down, up = ancestral(step.now, step.after, run.eta)
        x = _by_midpoint(run, x, slope, step.now, down)
        if up > 0:
            x = x + run.noise() * up
    return x


def _by_midpoint(run: SamplerRun, x: Vector, slope: Vector, now: float, after: float) -> Vector:
    if after == 0:
        return x + slope * (after - now)
    middle = math.sqrt(now * after)
    halfway = x + slope * (middle - now)
    return x + (halfway - run.denoise(halfway, middle)) / middle * (after - now)


def lms(run: SamplerRun) -> Vector:
    """Linear multistep (Adams and Bashforth) in sigma, of order `run.order`, lower while the history is short."""
    x = run.start
    slopes: list[Vector] = []
    sigmas = np.array([step.now for step in run.counted_steps()])
    for step in run:
        denoised = run.denoise(x, step.now, step.timestep)
        slopes = [run.keep((x - denoised) / step.now), *slopes][: run.order]
        counted = run.skipped + step.number
        nodes = sigmas[counted - np.arange(min(counted + 1, run.order))]
        # diffusers takes the weights of a whole history also where an image's first steps have none.
        for slope, weight in zip(slopes, lagrange_integrals(nodes, step.now, step.after), strict=not run.skipped):
            x = x + slope * weight
    return x


# Xu et al. 2023 (arXiv:2306.14878) for Stable Diffusion, as A1111 sets it: from `_RESTART_LOW` back to `_RESTART_HIGH`.
_RESTART_LOW, _RESTART_HIGH = 0.1, 2.0
_FEWEST_STEPS, _MANY_STEPS = 20, 36


def restart(run: SamplerRun) -> Vector:
    """Heun's steps, some of them twice or three times over: noise is added again in between."""
    count = len(run.steps.timesteps)
    sigmas = run.steps.sigmas
    again, times = 0, 0
    if count >= _FEWEST_STEPS:
        again, times = (count // 4, 2) if count >= _MANY_STEPS else (9, 1)
        sigmas = np.append(karras_sigmas(float(sigmas[-2]), float(sigmas[0]), count - again * times), 0.0)
    spans = list(itertools.pairwise(sigmas))
    low, high = (int(np.abs(sigmas - level).argmin()) for level in (_RESTART_LOW, _RESTART_HIGH))
    if times and high < low:
        repeated = karras_sigmas(float(sigmas[low]), float(sigmas[high]), again + 1)
        spans[low:low] = list(itertools.pairwise(repeated)) * times
    x = run.start
    reached = math.inf
    for index, (now, after) in enumerate(spans):
        run.begin_step(index)
        if reached < now:
            x = x + run.noise() * math.sqrt(now * now - reached * reached)
        slope = (x - run.denoise(x, now)) / now
        x = _corrected(run, x, slope, now, after)
        reached = after
    return x
