"""Noise schedules: the sigmas of a number of steps, falling. Host arithmetic in float64, no arrays of JAX.

The levels from which they are chosen are those of the training timesteps; see `scheduler_config.training_sigmas`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from sdjax import extensions
from sdjax.diffusion import elementary
from sdjax.diffusion.scheduler_config import SchedulerConfig

# The exponent of Karras et al. 2022, equation 5.
_KARRAS_RHO = 7.0
# The distribution of Lee et al. 2024 (arXiv:2407.12173).
_BETA_SHAPE = 0.6
# Sabour et al. 2024 (arXiv:2404.14507): the noise levels found for Stable Diffusion 1.5.
_ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


def timestep_of(sigma: Float64[np.ndarray, " n"], levels: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " n"]:
    """The (fractional) training timestep whose noise is sigma: linear in log sigma between `levels`."""
    logs = elementary.log(np.maximum(sigma, 1e-10))
    return np.interp(logs, log_levels(levels), np.arange(len(levels), dtype=np.float64))


def log_levels(levels: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
    """The logarithms of noise levels, which may be 0."""
    return elementary.log(np.maximum(levels, 1e-10))


def sigma_of(timestep: Float64[np.ndarray, " n"], levels: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " n"]:
    """k-diffusion's inverse of `timestep_of`."""
    return elementary.exp(np.interp(timestep, np.arange(len(levels)), log_levels(levels)))


# --- Sigmas between two ends, falling, without the final zero ---


def karras_sigmas(low: float, high: float, count: int) -> Float64[np.ndarray, " n"]:
    """Karras et al. 2022, equation 5."""
    ramp = np.linspace(0, 1, count)
    least, most = (elementary.power(end, 1 / _KARRAS_RHO) for end in (low, high))
    return elementary.power(most + ramp * (least - most), _KARRAS_RHO)


def exponential_sigmas(low: float, high: float, count: int) -> Float64[np.ndarray, " n"]:
    """Even in log sigma. Polyexponential is the same at its usual exponent, 1; so are Lu et al.'s lambdas."""
    return elementary.exp(np.linspace(elementary.log(high), elementary.log(low), count))


def _beta_sigmas(low: float, high: float, count: int) -> Float64[np.ndarray, " n"]:
    """Quantiles of a beta distribution, after Lee et al. 2024."""
    return low + beta_quantiles(1 - np.linspace(0, 1, count), _BETA_SHAPE, _BETA_SHAPE) * (high - low)


def _kl_optimal_sigmas(low: float, high: float, count: int) -> Float64[np.ndarray, " n"]:
    """Even in the arc tangent of sigma, the lower end included as what comes after the last step (as in A1111)."""
    share = np.arange(count + 1) / count
    return elementary.tan(share * elementary.atan(low) + (1 - share) * elementary.atan(high))


def beta_quantiles(probabilities: Float64[np.ndarray, " n"], alpha: float, beta: float) -> Float64[np.ndarray, " n"]:
    """The quantiles of the beta distribution, to about 1e-14: its distribution function, inverted by bisection.

    The function is the regularised incomplete beta integral by its continued fraction (Abramowitz and Stegun,
    26.5.8, with Lentz' method). It is `scipy.special.betaincinv` but for the last bits, which there depend on the
    processor and the version, and here do not.
    """
    front = elementary.log_gamma(alpha + beta) - elementary.log_gamma(alpha) - elementary.log_gamma(beta)

    def fraction(x: float, a: float, b: float) -> float:
        tiny, c, d = 1e-300, 1.0, 1 - (a + b) * x / (a + 1)
        d = 1 / (d if abs(d) > tiny else tiny)
        value = d
        for m in range(1, 500):
            for term in (
                m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
            ):
                d = 1 + term * d
                d = 1 / (d if abs(d) > tiny else tiny)
                c = 1 + term / c
                c = c if abs(c) > tiny else tiny
                value *= d * c
            if abs(d * c - 1) < 1e-15:
                break
        return value

    def distribution(x: float) -> float:
        if x <= 0 or x >= 1:
            return float(x >= 1)
        weight = elementary.exp(front + alpha * elementary.log(x) + beta * elementary.log1p(-x))
        if x < (alpha + 1) / (alpha + beta + 2):
            return weight * fraction(x, alpha, beta) / alpha
        return 1 - weight * fraction(1 - x, beta, alpha) / beta

    def quantile(probability: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if distribution(middle) < probability else (low, middle)
        return (low + high) / 2

    return np.array([0.0 if p <= 0 else 1.0 if p >= 1 else quantile(float(p)) for p in probabilities])


# --- Sigmas as k-diffusion and A1111 lay them, for any sampler ---


def _uniform(levels: Float64[np.ndarray, " t"], count: int) -> Float64[np.ndarray, " n"]:
    return sigma_of(np.linspace(len(levels) - 1, 0, count), levels)


def _sgm_uniform(levels: Float64[np.ndarray, " t"], count: int) -> Float64[np.ndarray, " n"]:
    return sigma_of(np.linspace(len(levels) - 1, 0, count + 1)[:-1], levels)


def _simple(levels: Float64[np.ndarray, " t"], count: int) -> Float64[np.ndarray, " n"]:
    return np.array([levels[-1 - int(index * (len(levels) / count))] for index in range(count)])


def _ddim_uniform(levels: Float64[np.ndarray, " t"], count: int) -> Float64[np.ndarray, " n"]:
    return np.asarray(levels[1 :: max(len(levels) // count, 1)][::-1], np.float64)


def _align_your_steps(levels: Float64[np.ndarray, " t"], count: int) -> Float64[np.ndarray, " n"]:
    if count == len(_ALIGNED):
        return np.array(_ALIGNED)
    places = np.linspace(0, 1, len(_ALIGNED))
    return elementary.exp(np.interp(np.linspace(0, 1, count), places, elementary.log(np.array(_ALIGNED))))


def _between_ends(
    sigmas: Callable[[float, float, int], Float64[np.ndarray, " n"]],
) -> Callable[[Float64[np.ndarray, " t"], int], Float64[np.ndarray, " n"]]:
    return lambda levels, count: sigmas(float(levels[0]), float(levels[-1]), count)


class Schedule(NamedTuple):
    """One way to lay sigmas.

    free: as k-diffusion and A1111 do, from the model's levels alone.
    between: as diffusers does, between two ends that depend on the sampler; None if it has no such schedule.
    """

    free: Callable[[Float64[np.ndarray, " t"], int], Float64[np.ndarray, " n"]]
    between: Callable[[float, float, int], Float64[np.ndarray, " n"]] | None = None


# A job's `schedule`. Uniform in diffusers' spacings are the timesteps as the spacing lays them.
SCHEDULES: dict[str, Schedule] = {
    "uniform": Schedule(_uniform),
    "karras": Schedule(_between_ends(karras_sigmas), karras_sigmas),
    "exponential": Schedule(_between_ends(exponential_sigmas), exponential_sigmas),
    "polyexponential": Schedule(_between_ends(exponential_sigmas)),
    "beta": Schedule(_between_ends(_beta_sigmas), _beta_sigmas),
    "lu": Schedule(_between_ends(exponential_sigmas), exponential_sigmas),
    "sgm_uniform": Schedule(_sgm_uniform),
    "simple": Schedule(_simple),
    "ddim_uniform": Schedule(_ddim_uniform),
    "align_your_steps": Schedule(_align_your_steps),
    "kl_optimal": Schedule(_between_ends(_kl_optimal_sigmas)),
}


def schedule_row(name: str) -> Schedule:
    """The row of a schedule, of this package or another.

    Raises:
      KeyError: if there is none.
      ExtensionError: if it is another package's and can't be used.
    """
    return extensions.row_named(name, SCHEDULES, extensions.SCHEDULES, Schedule)


def default_schedule(config: SchedulerConfig) -> str:
    """The schedule that the checkpoint's own config asks for."""
    names = {
        "use_karras_sigmas": "karras",
        "use_exponential_sigmas": "exponential",
        "use_beta_sigmas": "beta",
        "use_lu_lambdas": "lu",
    }
    return next((name for flag, name in names.items() if getattr(config, flag)), "uniform")
