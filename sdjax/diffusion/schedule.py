"""Noise schedules and the steps that are taken through them. Host arithmetic in float64, no arrays of JAX.

A schedule is told in sigmas, as in Karras et al. 2022 (arXiv:2206.00364): latents at level sigma are
`x0 + sigma * noise`; the network sees them divided by `sqrt(sigma^2 + 1)`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from sdjax.models.config import read_config, require, require_positive

Spacing = Literal["leading", "linspace", "trailing"]
SPACINGS = ("leading", "linspace", "trailing")

# What a zero terminal signal-to-noise ratio is lifted to: the least positive float16 (as in diffusers).
_LEAST_ALPHA_CUMPROD = 2.0**-24
# The exponent of Karras et al. 2022, equation 5.
_KARRAS_RHO = 7.0

# Switches of diffusers' schedulers that change what is computed, at the only value known here.
_FIXED = {
    "algorithm_type": "dpmsolver++",
    "dynamic_thresholding_ratio": frozenset({0.995}),
    "euler_at_final": False,
    "flow_shift": frozenset({1, None}),
    "interpolation_type": "linear",
    "lambda_min_clipped": -math.inf,
    "lower_order_final": True,
    "predict_x0": True,
    "sigma_max": None,
    "sigma_min": None,
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
    "time_shift_type": "exponential",
    "timestep_type": "discrete",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": frozenset({None, "fixed_small"}),
}
# Those that only a sampler heeds, and others' keys of this kind: where a checkpoint's own sampler is none of ours, jobs
# name another, for which these say nothing.
_OF_SAMPLERS = frozenset(
    {
        "algorithm_type", "disable_corrector", "euler_at_final", "lower_order_final", "original_inference_steps",
        "predict_x0", "solver_order", "solver_p", "solver_type", "timestep_scaling", "use_lu_lambdas", "variance_type",
    }
)  # fmt: skip
# Without effect while the switches above are off, or in inference; diffusers' own pipeline turns clipping off.
_INFORMATIVE = frozenset({"clip_sample", "clip_sample_range", "sample_max_value", "skip_prk_steps"})


class ScheduleError(ValueError):
    """Steps that a schedule can't give."""


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """`scheduler/scheduler_config.json`, less what names the sampler.

    Fields of None were not in the file: each sampler has its own default for them.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: Spacing | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    use_karras_sigmas: bool = False
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"

    def __post_init__(self) -> None:
        require(
            self.trained_betas is not None or self.beta_schedule in _BETAS,
            f"beta_schedule = {self.beta_schedule!r} is not one of {', '.join(_BETAS)}",
        )
        require(
            self.prediction_type in ("epsilon", "v_prediction"),
            f"prediction_type = {self.prediction_type!r} is neither epsilon nor v_prediction",
        )
        require(
            self.timestep_spacing in (None, *SPACINGS),
            f"timestep_spacing = {self.timestep_spacing!r} is not one of {', '.join(SPACINGS)}",
        )
        require(
            self.final_sigmas_type in ("zero", "sigma_min"),
            f"final_sigmas_type = {self.final_sigmas_type!r} is neither zero nor sigma_min",
        )
        require_positive(self, "num_train_timesteps")
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"beta_start = {self.beta_start}, beta_end = {self.beta_end}: expected numbers that rise, within 0 and 1",
        )
        require(
            self.trained_betas is None or all(0 < beta < 1 for beta in self.trained_betas),
            "trained_betas are not all between 0 and 1",
        )
        require(
            0 <= self.steps_offset < self.num_train_timesteps,
            f"steps_offset = {self.steps_offset} is not within 0 to {self.num_train_timesteps - 1}",
        )
        require(
            self.trained_betas is None or len(self.trained_betas) == self.num_train_timesteps,
            "trained_betas has not one entry per training timestep",
        )

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], where: str = "scheduler/scheduler_config.json", own_sampler: bool = True
    ) -> "SchedulerConfig":
        """Reads diffusers' config.

        Args:
          data: the JSON object.
          where: names the file in errors.
          own_sampler: whether the checkpoint's own sampler is among ours; if not, its options are passed over.

        Raises:
          ConfigError: for what is not implemented.
        """
        informative = _INFORMATIVE if own_sampler else _INFORMATIVE | _OF_SAMPLERS
        fixed = {key: value for key, value in _FIXED.items() if key not in informative}
        return read_config(cls, data, fixed=fixed, informative=informative, where=where)


def _cosine_betas(config: SchedulerConfig) -> Float64[np.ndarray, " t"]:
    """Nichol and Dhariwal 2021, section 3.2, betas at most 0.999."""
    levels = np.arange(config.num_train_timesteps + 1) / config.num_train_timesteps
    alpha_bar = np.cos((levels + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


_BETAS = {
    "linear": lambda c: np.linspace(c.beta_start, c.beta_end, c.num_train_timesteps),
    "scaled_linear": lambda c: np.linspace(c.beta_start**0.5, c.beta_end**0.5, c.num_train_timesteps) ** 2,
    "squaredcos_cap_v2": _cosine_betas,
}


def alphas_cumprod(config: SchedulerConfig) -> Float64[np.ndarray, " t"]:
    """The share of signal (of variance) at each training timestep, falling from about 1 to about 0.

    With `rescale_betas_zero_snr` as in Lin et al. 2023 (arXiv:2305.08891), algorithm 1.
    """
    betas = np.asarray(config.trained_betas) if config.trained_betas else _BETAS[config.beta_schedule](config)
    result = np.cumprod(1 - betas)
    if config.rescale_betas_zero_snr:
        root = np.sqrt(result)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        result = root**2
        result[-1] = _LEAST_ALPHA_CUMPROD
    return result


def training_sigmas(config: SchedulerConfig) -> Float64[np.ndarray, " t"]:
    """The noise level of each training timestep, rising."""
    signal = alphas_cumprod(config)
    return np.sqrt((1 - signal) / signal)


class StepRules(NamedTuple):
    """How the steps of one sampler are laid: diffusers' schedulers differ in this.

    spacing: used if neither job nor checkpoint says one.
    whole: whether timesteps are rounded to whole numbers.
    drops_last: whether one point more is laid and the last, next to zero noise, left out.
    karras_over: whether Karras' sigmas span the laid steps or the whole training range.
    unit_start: whether the first latents have unit variance for the network (else sigma times noise).
    """

    spacing: Spacing
    whole: bool
    drops_last: bool
    karras_over: Literal["steps", "training"]
    unit_start: bool


class Steps(NamedTuple):
    """The levels that a sampler visits.

    timesteps: (n,) what the network is told at each step, falling.
    sigmas: (n + 1,) the noise at each step, and that after the last.
    start: the standard deviation of the first latents.
    spacing: how the timesteps were laid.
    karras: whether the sigmas were then laid anew, as Karras et al. do.
    """

    timesteps: Float64[np.ndarray, " n"]
    sigmas: Float64[np.ndarray, " m"]
    start: float
    spacing: Spacing
    karras: bool = False


# A job's `schedule`: (spacing or None for the default, kind of sigmas).
SCHEDULES: dict[str, tuple[Spacing | None, Literal["uniform", "karras"]]] = {
    "uniform": (None, "uniform"),
    "karras": (None, "karras"),
    "leading": ("leading", "uniform"),
    "linspace": ("linspace", "uniform"),
    "trailing": ("trailing", "uniform"),
}


def _laid_timesteps(
    config: SchedulerConfig, rules: StepRules, spacing: Spacing, count: int
) -> Float64[np.ndarray, " n"]:
    """Lin et al. 2023, table 2, with the roundings of diffusers."""
    total = config.num_train_timesteps
    points = count + rules.drops_last
    steps: np.ndarray
    if spacing == "linspace":
        steps = np.linspace(0, total - 1, points)[::-1]
        steps = np.round(steps) if rules.whole else steps
    elif spacing == "leading":
        steps = (np.arange(points) * (total // points))[::-1] + float(config.steps_offset)
    else:
        return np.round(np.arange(total, 0, -total / count)) - 1
    return np.asarray(steps[:count], np.float64)


def _karras(low: float, high: float, count: int) -> Float64[np.ndarray, " n"]:
    """Karras et al. 2022, equation 5, without the final zero."""
    ramp = np.linspace(0, 1, count)
    return (high ** (1 / _KARRAS_RHO) + ramp * (low ** (1 / _KARRAS_RHO) - high ** (1 / _KARRAS_RHO))) ** _KARRAS_RHO


def timestep_of(sigma: Float64[np.ndarray, " n"], levels: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " n"]:
    """The (fractional) training timestep whose noise is sigma: linear in log sigma between `levels`."""
    return np.interp(np.log(np.maximum(sigma, 1e-10)), np.log(levels), np.arange(len(levels), dtype=np.float64))


def lay_steps(config: SchedulerConfig, rules: StepRules, schedule: str, count: int) -> Steps:
    """Lays `count` steps (or as many as the spacing gives) for one sampler.

    Args:
      config: the checkpoint's.
      rules: the sampler's.
      schedule: a key of `SCHEDULES`.
      count: from 1 to `config.num_train_timesteps`.

    Raises:
      ScheduleError: if there are more steps than training timesteps, or so many that two fall on one.
    """
    if not 1 <= count <= config.num_train_timesteps:
        raise ScheduleError(f"steps = {count} is not within 1 to {config.num_train_timesteps}, the model's timesteps")
    wanted, kind = SCHEDULES[schedule]
    spacing = wanted or config.timestep_spacing or rules.spacing
    levels = training_sigmas(config)
    timesteps = np.clip(_laid_timesteps(config, rules, spacing, count), 0, config.num_train_timesteps - 1)
    sigmas: Float64[np.ndarray, " n"] = np.interp(timesteps, np.arange(len(levels)), levels)
    if kind == "karras":
        ends = (sigmas[-1], sigmas[0]) if rules.karras_over == "steps" else (levels[0], levels[-1])
        sigmas = _karras(*ends, len(timesteps))
        timesteps = timestep_of(sigmas, levels)
        if rules.whole and config.beta_schedule != "squaredcos_cap_v2":
            timesteps = np.round(timesteps)
    if (np.diff(sigmas) >= 0).any():
        raise ScheduleError(
            f"steps = {count} is too many for the {spacing} spacing: two steps fall on one timestep; ask for fewer"
        )
    last = 0.0 if config.final_sigmas_type == "zero" else levels[0]
    unit = rules.unit_start or spacing == "leading"
    start = math.hypot(sigmas[0], 1.0) if unit else float(sigmas[0])
    return Steps(timesteps, np.append(sigmas, last), start, spacing, kind == "karras")


def default_schedule(config: SchedulerConfig) -> str:
    """The schedule that the checkpoint's own config asks for."""
    return "karras" if config.use_karras_sigmas else "uniform"
