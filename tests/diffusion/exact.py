"""Data whose diffusion is known exactly, for samplers to be measured on.

In one dimension the probability flow moves quantiles (its velocity is what keeps the share of data on either side), so
where it leads from any start is known from the distribution function, here of a mixture of normal data. And of normal
data the best denoiser is linear: then a sampler's result is a weighted sum of a constant, of the noise at the start and
of every noise drawn, and its mean and deviation follow without drawing any.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from sdjax.diffusion.samplers import SAMPLERS, Options, SamplerRun, config_for, fill_in
from sdjax.diffusion.scheduler_config import SchedulerConfig, training_sigmas
from sdjax.diffusion.schedules import timestep_of
from sdjax.diffusion.tableau import Table
from sdjax.diffusion.timestep_spacing import Steps
from tests.diffusion.on_host import run_on_host

CONFIG = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LEVELS = training_sigmas(CONFIG)
DEFAULTS = Options()
# From so much noise that a method's first steps, of lower order for want of earlier ones, hardly count.
FIRST, LAST = 1000.0, 0.2
# Samplers that give latents of unit variance also where noise is left.
UNIT_VARIANCE = ("ddpm", "ddim", "pndm", "plms", "lcm", "tcd")

# (share, mean, deviation) of the mixture's parts.
PARTS = ((0.4, -1.0, 0.5), (0.6, 0.8, 0.6))
_STARTS = np.array([-1.3, -0.5, 0.2, 0.9])


def geometric(name: str, count: int, options: Options = DEFAULTS, **config: Any) -> tuple[Table, float, float]:
    """A sampler's table for steps even in the logarithm of sigma, and the sigmas at both ends."""
    first, last = FIRST, LAST
    if name in ("tcd", "dpm_fast"):  # these end at the model's lowest level, whatever the steps
        first, last = float(LEVELS[-1]), float(LEVELS[0])
    heeded = dataclasses.replace(config_for(CONFIG, name, own=False), **config)
    sigmas = np.geomspace(first, last, count + 1)
    steps = Steps(timestep_of(sigmas[:-1], LEVELS), sigmas, first, "k_diffusion", "uniform")
    run = SamplerRun(heeded, steps, fill_in(heeded, name, options))
    return run.table(SAMPLERS[name].write(run)), first, last


def of_mixture(latents: np.ndarray, sigma: float, timestep: float) -> np.ndarray:
    """The best denoiser of the mixture."""
    total, weights = np.zeros_like(latents), np.zeros_like(latents)
    for share, mean, deviation in PARTS:
        variance = deviation**2 + sigma**2
        weight = share / math.sqrt(variance) * np.exp(-((latents - mean) ** 2) / (2 * variance))
        total += weight * (latents * deviation**2 + mean * sigma**2) / variance
        weights += weight
    return total / weights


def _below(value: float, sigma: float) -> float:
    """The share of noisy data of the mixture below a value."""
    return sum(
        share * 0.5 * math.erfc(-(value - mean) / math.sqrt(2 * (deviation**2 + sigma**2)))
        for share, mean, deviation in PARTS
    )


def flow(value: float, start: float, end: float) -> float:
    """Where the mixture's probability flow leads from one sigma to a lower one."""
    wanted, low, high = _below(value, start), -100.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, end) < wanted else (low, middle)
    return (low + high) / 2


def error(name: str, count: int, options: Options = DEFAULTS, **config: Any) -> float:
    """How far a sampler without noise ends from where the flow does."""
    table, first, last = geometric(name, count, options, **config)
    found = run_on_host(table, of_mixture, _STARTS, np.zeros((len(table.draws), len(_STARTS))))
    if name in UNIT_VARIANCE:
        found = found * math.hypot(last, 1)
    return float(np.abs(found - [flow(start * first, first, last) for start in _STARTS]).max())


def moments(table: Table, mean: float, deviation: float, start: tuple[float, float]) -> tuple[float, float]:
    """Mean and deviation of a sampler's results for normal data.

    Args:
      table: of the sampler.
      mean: of the data.
      deviation: of the data.
      start: mean and deviation of what the table takes for standard normal noise.
    """
    size = 2 + len(table.draws)
    one, *noises = np.eye(size)[[0, *range(2, size)]]

    def denoise(latents: np.ndarray, sigma: float, timestep: float) -> np.ndarray:
        share = deviation**2 / (deviation**2 + sigma**2)
        return share * latents + (1 - share) * mean * one

    begin = start[0] * one
    begin[1] = start[1]
    found = run_on_host(table, denoise, begin, noises)
    drawn = found[2:]
    return float(found[0]), math.sqrt(found[1] ** 2 + drawn @ _correlations(table) @ drawn)


def _correlations(table: Table) -> np.ndarray:
    """Of the noises: increments of one path that overlap are alike."""
    result = np.eye(len(table.draws))
    path = np.flatnonzero(table.brownian)
    low, high = np.sort(table.span, axis=1).T
    for one in path:
        for other in path[path != one]:
            overlap = min(high[one], high[other]) - max(low[one], low[other])
            product = (high[one] - low[one]) * (high[other] - low[other])
            result[one, other] = max(overlap, 0.0) / math.sqrt(product) if product > 0 else 0.0
    return result


def error_of_distribution(name: str, count: int, options: Options = DEFAULTS) -> float:
    """How far the mean and the deviation are from those of the data, over data of several deviations."""
    table, first, last = geometric(name, count, options)
    errors = []
    for deviation in (0.3, 0.6, 1.2):
        mean = 0.7
        found = moments(table, mean, deviation, (mean / first, math.hypot(deviation, first) / first))
        scale = math.hypot(last, 1) if name in UNIT_VARIANCE else 1.0
        errors += [found[0] * scale - mean, found[1] * scale / math.hypot(deviation, last) - 1]
    return float(np.sqrt(np.mean(np.square(errors))))


def order(counts: list[int], errors: list[float]) -> float:
    """The power of the number of steps with which errors fall."""
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])
