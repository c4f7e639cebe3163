"""Noise schedules and the steps that are taken through them. Host arithmetic in float64, no arrays of JAX.

A schedule is told in sigmas, as in Karras et al. 2022 (arXiv:2206.00364): latents at level sigma are
`x0 + sigma * noise`; the network sees them divided by `sqrt(sigma^2 + 1)`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from sdjax.diffusion import elementary
from sdjax.diffusion.scheduler_classes import filled_in
from sdjax.messages import shown
from sdjax.models.config import ConfigError, read_config, require, require_positive

Spacing = Literal["leading", "linspace", "trailing", "k_diffusion"]
# Of diffusers' schedulers, as each class rounds them; and k-diffusion's, which A1111 and ComfyUI use for all samplers.
SPACINGS = ("leading", "linspace", "trailing", "k_diffusion")

# What a zero terminal signal-to-noise ratio is lifted to: the least positive float16 (as in diffusers).
_LEAST_ALPHA_CUMPROD = 2.0**-24
# Training timesteps: 1,000 of all published models. With fewer than two there is nothing between noise and image.
LEAST_TIMESTEPS, MOST_TIMESTEPS = 2, 100_000
# By which a consistency model's timesteps are multiplied: 10.
_MOST_SCALING = 1e6
# The exponent of Karras et al. 2022, equation 5.
_KARRAS_RHO = 7.0
# The distribution of Lee et al. 2024 (arXiv:2407.12173).
_BETA_SHAPE = 0.6
# Sabour et al. 2024 (arXiv:2404.14507): the noise levels found for Stable Diffusion 1.5.
_ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)

# Switches of diffusers' schedulers that change what is computed, at the only value known here.
_FIXED = {
    "flow_shift": frozenset({1, None}),
    "noise_sampler_seed": None,
    "shift_terminal": None,
    "solver_p": None,
    "time_shift_type": "exponential",
    "timestep_type": "discrete",
    "use_dynamic_shifting": False,
    "use_flow_sigmas": False,
}
# Without effect in inference; diffusers' own pipeline turns clipping off.
_INFORMATIVE = frozenset({"clip_sample", "clip_sample_range"})


class ScheduleError(ValueError):
    """Steps that a schedule can't give."""


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """`scheduler/scheduler_config.json`, less what names the sampler.

    Fields of None were not in the file: each sampler has its own default for them. The second part is heeded only by
    the checkpoint's own sampler.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    algorithm_type: str | None = None
    solver_order: int | None = None
    solver_type: str | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool = False
    lambda_min_clipped: float | None = None
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    variance_type: str | None = None
    skip_prk_steps: bool = False
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        known_betas = self.trained_betas is not None or self.beta_schedule in _BETAS
        require(known_betas, f"beta_schedule = {shown(self.beta_schedule)} is not one of {', '.join(_BETAS)}")
        for name, known in (
            ("prediction_type", PREDICTION_TYPES),
            ("timestep_spacing", (None, *SPACINGS[:3])),
            ("final_sigmas_type", ("zero", "sigma_min")),
            ("interpolation_type", ("linear", "log_linear")),
            ("algorithm_type", (None, "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis")),
            ("solver_type", (None, "midpoint", "heun", "logrho", "bh1", "bh2")),
            ("solver_order", (None, 1, 2, 3)),
            ("variance_type", (None, *VARIANCES)),
        ):
            value = getattr(self, name)
            words = ", ".join(str(word) for word in known if word is not None)
            require(value in known, f"{name} = {shown(value)} is not one of {words}")
        require_positive(self, "num_train_timesteps")
        require(
            LEAST_TIMESTEPS <= self.num_train_timesteps <= MOST_TIMESTEPS,
            f"num_train_timesteps = {shown(self.num_train_timesteps)}: expected {LEAST_TIMESTEPS} to {MOST_TIMESTEPS}",
        )
        require_positive(self, "original_inference_steps", most=MOST_TIMESTEPS)
        require_positive(self, "timestep_scaling", most=_MOST_SCALING)
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
            f"steps_offset = {shown(self.steps_offset)} is not within 0 to {self.num_train_timesteps - 1}",
        )
        require(
            self.trained_betas is None or len(self.trained_betas) == self.num_train_timesteps,
            "trained_betas has not one entry per training timestep",
        )
        require(sum(getattr(self, flag) for flag in _FLAGS) <= 1, f"only one of {', '.join(_FLAGS)} can be on")
        require(
            0 < self.dynamic_thresholding_ratio <= 1,
            f"dynamic_thresholding_ratio = {self.dynamic_thresholding_ratio}: expected a number above 0, up to 1",
        )
        least, most = SAMPLE_MAX_VALUES if self.thresholding else (0.0, math.inf)
        require(
            least <= self.sample_max_value <= most,
            f"sample_max_value = {self.sample_max_value}: expected a number from {least} to {most}",
        )
        for name in ("sigma_min", "sigma_max"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} = {value} is not positive")
        require(
            self.algorithm_type not in ("dpmsolver", "sde-dpmsolver") or self.final_sigmas_type == "sigma_min",
            f"algorithm_type = {self.algorithm_type} needs final_sigmas_type = sigma_min",
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "scheduler/scheduler_config.json") -> "SchedulerConfig":
        """Reads diffusers' config, with the defaults of the class that it names.

        Raises:
          ConfigError: for what is not implemented.
        """
        filled = filled_in(data, where)
        if filled.get("lambda_min_clipped") == -math.inf:  # nothing is clipped
            del filled["lambda_min_clipped"]
        config = read_config(cls, filled, fixed=_FIXED, informative=_INFORMATIVE, where=where)
        try:
            _check_levels(config, "original_inference_steps" in data)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        return config


_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
# Of a job or, where it thresholds, of a checkpoint.
SAMPLE_MAX_VALUES = (0.001, 1000.0)
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


def _betas_of(signal: Callable[[np.ndarray], np.ndarray]) -> Callable[[SchedulerConfig], Float64[np.ndarray, " t"]]:
    """Betas, at most 0.999, that give a falling share of signal over 0 to 1."""

    def betas(config: SchedulerConfig) -> Float64[np.ndarray, " t"]:
        shares = signal(np.arange(config.num_train_timesteps + 1) / config.num_train_timesteps)
        return np.minimum(1 - shares[1:] / shares[:-1], 0.999)

    return betas


def _squared(values: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
    return values * values


def _sigmoid_betas(config: SchedulerConfig) -> Float64[np.ndarray, " t"]:
    rising = 1 / (1 + elementary.exp(-np.linspace(-6, 6, config.num_train_timesteps)))
    return rising * (config.beta_end - config.beta_start) + config.beta_start


_BETAS: dict[str, Callable[[SchedulerConfig], Float64[np.ndarray, " t"]]] = {
    "linear": lambda c: np.linspace(c.beta_start, c.beta_end, c.num_train_timesteps),
    "scaled_linear": lambda c: _squared(
        np.linspace(math.sqrt(c.beta_start), math.sqrt(c.beta_end), c.num_train_timesteps)
    ),
    # Nichol and Dhariwal 2021, section 3.2.
    "squaredcos_cap_v2": _betas_of(lambda t: _squared(elementary.cos((t + 0.008) / 1.008 * math.pi / 2))),
    "exp": _betas_of(lambda t: elementary.exp(-12.0 * t)),
    "sigmoid": _sigmoid_betas,
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
        result = _squared(root)
        result[-1] = _LEAST_ALPHA_CUMPROD
    return result


def _check_levels(config: SchedulerConfig, says_original_steps: bool) -> None:
    """Raises `ConfigError` if there are no noise levels by this config, or none of those that it asks for."""
    with np.errstate(all="ignore"):
        levels = training_sigmas(config)
    require(
        bool(np.isfinite(levels).all() and levels[0] > 0 and (np.diff(levels) > 0).all()),
        f"beta_start = {config.beta_start}, beta_end = {config.beta_end}, beta_schedule = {config.beta_schedule}, "
        f"num_train_timesteps = {config.num_train_timesteps}: by these (or trained_betas) the noise does not rise from "
        "timestep to timestep within float64",
    )
    low, high = config.sigma_min or float(levels[0]), config.sigma_max or float(levels[-1])
    require(low < high, f"sigma_min = {config.sigma_min}, sigma_max = {config.sigma_max}: {low} is not below {high}")
    require(
        config.lambda_min_clipped is None or math.log(levels[1]) <= -config.lambda_min_clipped,
        f"lambda_min_clipped = {config.lambda_min_clipped} leaves fewer than two noise levels",
    )
    require(
        not says_original_steps or config.original_inference_steps <= config.num_train_timesteps,
        f"original_inference_steps = {config.original_inference_steps} is more than num_train_timesteps = "
        f"{config.num_train_timesteps}",
    )


@functools.lru_cache(maxsize=64)
def training_sigmas(config: SchedulerConfig) -> Float64[np.ndarray, " t"]:
    """The noise level of each training timestep, rising; not to be written to."""
    signal = alphas_cumprod(config)
    levels = np.sqrt((1 - signal) / signal)
    levels.flags.writeable = False
    return levels


class StepRules(NamedTuple):
    """How diffusers' class lays the steps of one sampler.

    spacing: used if neither job nor checkpoint says one.
    whole: whether timesteps are whole numbers.
    drops_last: whether one point more is laid and the last, next to zero noise, left out.
    range: whether Karras' and other sigmas span the laid steps or the whole training range.
    unit_start: whether the first latents have unit variance for the network (else sigma times noise).
    schedules: those that the class has.
    rounds_karras: whether timesteps of Karras' sigmas are rounded.
    final: where it ends: as the config says, without noise, at the least training level, or at the last step's own
      level again.
    discards_penultimate: in k-diffusion's spacing one step more is laid and the last but one left out, as A1111 does.
    spacings: of diffusers, those that the class heeds.
    timesteps: another way to lay them than the spacings.
    """

    spacing: Spacing
    whole: bool
    drops_last: bool = False
    range: Literal["steps", "training"] = "steps"
    unit_start: bool = False
    schedules: tuple[str, ...] = ("uniform", "karras", "exponential", "beta")
    rounds_karras: bool = False
    final: Literal["config", "zero", "lowest", "again"] = "config"
    discards_penultimate: bool = False
    spacings: tuple[Spacing, ...] = ("leading", "linspace", "trailing")
    timesteps: Callable[[SchedulerConfig, int], Float64[np.ndarray, " n"]] | None = None


class Steps(NamedTuple):
    """The levels that a sampler visits.

    timesteps: (n,) what the network is told at each step, falling.
    sigmas: (n + 1,) the noise at each step, and that after the last.
    start: the standard deviation of the first latents.
    spacing: how the timesteps were laid.
    schedule: how the sigmas were.
    skipped_timesteps, skipped_sigmas: (k,) of the steps before these, which begin with a picture.
    """

    timesteps: Float64[np.ndarray, " n"]
    sigmas: Float64[np.ndarray, " m"]
    start: float
    spacing: Spacing
    schedule: str
    skipped_timesteps: Float64[np.ndarray, " k"] = np.zeros(0)
    skipped_sigmas: Float64[np.ndarray, " k"] = np.zeros(0)

    @property
    def skipped(self) -> int:
        """Steps of the schedule before these."""
        return len(self.skipped_timesteps)

    @property
    def laid(self) -> int:
        """The steps of the whole schedule."""
        return self.skipped + len(self.timesteps)


def steps_of_strength(steps: Steps, strength: float) -> Steps:
    """The last steps of a schedule, as diffusers takes them to change a picture: SDEdit (Meng et al. 2022, 2108.01073).

    Args:
      steps: the whole.
      strength: from 0 (none of them) to 1 (all); its share of the steps is rounded down.

    Returns:
      those left, whose first latents are the picture's, and `start` times noise.
    """
    skipped = steps.laid - int(steps.laid * strength)
    if not skipped:
        return steps
    left = steps.sigmas[skipped:]
    return steps._replace(
        timesteps=steps.timesteps[skipped:],
        sigmas=left,
        start=float(left[0]) if len(left) > 1 else 0.0,
        skipped_timesteps=steps.timesteps[:skipped],
        skipped_sigmas=steps.sigmas[:skipped],
    )


def timestep_of(sigma: Float64[np.ndarray, " n"], levels: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " n"]:
    """The (fractional) training timestep whose noise is sigma: linear in log sigma between `levels`."""
    logs = elementary.log(np.maximum(sigma, 1e-10))
    return np.interp(logs, _logs(levels), np.arange(len(levels), dtype=np.float64))


def _logs(levels: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
    return elementary.log(np.maximum(levels, 1e-10))


def sigma_of(timestep: Float64[np.ndarray, " n"], levels: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " n"]:
    """k-diffusion's inverse of `timestep_of`."""
    return elementary.exp(np.interp(timestep, np.arange(len(levels)), _logs(levels)))


# --- Sigmas between two ends, falling, without the final zero ---


def karras_sigmas(low: float, high: float, count: int) -> Float64[np.ndarray, " n"]:
    """Karras et al. 2022, equation 5."""
    ramp = np.linspace(0, 1, count)
    least, most = (elementary.power(end, 1 / _KARRAS_RHO) for end in (low, high))
    return elementary.power(most + ramp * (least - most), _KARRAS_RHO)


def _exponential_sigmas(low: float, high: float, count: int) -> Float64[np.ndarray, " n"]:
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
    """The quantiles of the beta distribution, to about 1e-12: its distribution function, inverted by bisection.

    The function is the regularised incomplete beta integral by its continued fraction (Abramowitz and Stegun,
    26.5.8, with Lentz' method).
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
    "exponential": Schedule(_between_ends(_exponential_sigmas), _exponential_sigmas),
    "polyexponential": Schedule(_between_ends(_exponential_sigmas)),
    "beta": Schedule(_between_ends(_beta_sigmas), _beta_sigmas),
    "lu": Schedule(_between_ends(_exponential_sigmas), _exponential_sigmas),
    "sgm_uniform": Schedule(_sgm_uniform),
    "simple": Schedule(_simple),
    "ddim_uniform": Schedule(_ddim_uniform),
    "align_your_steps": Schedule(_align_your_steps),
    "kl_optimal": Schedule(_between_ends(_kl_optimal_sigmas)),
}


def default_schedule(config: SchedulerConfig) -> str:
    """The schedule that the checkpoint's own config asks for."""
    names = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
    names["use_lu_lambdas"] = "lu"
    return next((name for flag, name in names.items() if getattr(config, flag)), "uniform")


def default_spacing(config: SchedulerConfig, rules: StepRules, schedule: str) -> Spacing:
    """The spacing of a job that names none: the checkpoint's, or the sampler's, if diffusers has the schedule there."""
    if schedule not in rules.schedules:
        return "k_diffusion"
    return config.timestep_spacing if config.timestep_spacing in rules.spacings else rules.spacing


def lay_steps(config: SchedulerConfig, rules: StepRules, schedule: str, spacing: Spacing, count: int) -> Steps:
    """Lays `count` steps (or as many as the spacing gives) for one sampler.

    Args:
      config: the checkpoint's.
      rules: the sampler's.
      schedule: a key of `SCHEDULES`.
      spacing: one of `SPACINGS`.
      count: from 1 to `config.num_train_timesteps`.

    Raises:
      ScheduleError: if there are more steps than training timesteps, or so many that two fall on one, or if the
        sampler does not have this schedule in this spacing.
    """
    if not 1 <= count <= config.num_train_timesteps:
        raise ScheduleError(f"steps = {count} is not within 1 to {config.num_train_timesteps}, the model's timesteps")
    levels = training_sigmas(config)
    if spacing == "k_diffusion":
        timesteps, sigmas = _freely(levels, rules, schedule, count)
        start = float(sigmas[0])
    else:
        if spacing not in rules.spacings:
            known = ", ".join((*rules.spacings, "k_diffusion"))
            raise ScheduleError(f"timestep_spacing = {spacing}: this sampler has {known}")
        if schedule not in rules.schedules:
            raise ScheduleError(
                f"schedule = {schedule} is not one of those that diffusers lays for this sampler "
                f"({', '.join(rules.schedules)}); leave timestep_spacing out or set it to k_diffusion"
            )
        timesteps, sigmas = _as_diffusers(config, rules, schedule, spacing, count)
        unit = rules.unit_start or spacing == "leading"
        start = float(sigmas[:-1].max())
        start = math.sqrt(start * start + 1) if unit else start
    # The last step may stay where it is, if it ends with noise.
    if not (np.diff(sigmas[:-1]) < 0).all() or not 0 <= sigmas[-1] <= sigmas[-2]:
        raise ScheduleError(
            f"steps = {count} is too many for the schedule {schedule} in the {spacing} spacing: two steps fall on one "
            "noise level; ask for fewer"
        )
    return Steps(timesteps, sigmas, start, spacing, schedule)


def _freely(
    levels: Float64[np.ndarray, " t"], rules: StepRules, schedule: str, count: int
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
    more = count + rules.discards_penultimate
    laid = SCHEDULES[schedule].free(levels, more)
    sigmas = laid if schedule == "kl_optimal" else np.append(laid, 0.0)
    if rules.discards_penultimate:
        sigmas = np.append(sigmas[:-2], sigmas[-1])
    return timestep_of(sigmas[:-1], levels), sigmas


def _as_diffusers(
    config: SchedulerConfig, rules: StepRules, schedule: str, spacing: Spacing, count: int
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
    levels = training_sigmas(config)
    total = config.num_train_timesteps
    if rules.timesteps:
        timesteps = rules.timesteps(config, count)
    else:
        timesteps = np.clip(_laid_timesteps(config, rules, spacing, count), 0, total - 1)
    sigmas: Float64[np.ndarray, " n"] = np.interp(timesteps, np.arange(total), levels)
    to_zero = rules.final == "zero" or (rules.final == "config" and config.final_sigmas_type == "zero")
    last = 0.0 if to_zero else float(levels[0])
    between = SCHEDULES[schedule].between
    if between is not None and schedule != "uniform":
        low, high = (sigmas[-1], sigmas[0]) if rules.range == "steps" else (levels[0], levels[-1])
        if schedule != "lu":
            low, high = config.sigma_min or low, config.sigma_max or high
        sigmas = between(float(low), float(high), len(timesteps))
        timesteps = timestep_of(sigmas, levels)
        if rules.rounds_karras and schedule in ("karras", "lu") and config.beta_schedule != "squaredcos_cap_v2":
            timesteps = np.round(timesteps)
        timesteps = np.floor(timesteps + _ROUNDING) if rules.whole else timesteps
        if rules.final == "again":
            last = float(sigmas[-1])
    elif config.interpolation_type == "log_linear":
        *front, last = _exponential_sigmas(float(levels[0]), float(levels[-1]), count + 1)
        sigmas = np.array(front)
    # Where the last step is at the least level already but for rounding, it stays where it is.
    return timesteps, np.append(sigmas, last if last < sigmas[-1] * (1 - 1e-12) else sigmas[-1])


# A timestep that is whole but for rounding must not be taken for the one below.
_ROUNDING = 1e-6


def _laid_timesteps(
    config: SchedulerConfig, rules: StepRules, spacing: Spacing, count: int
) -> Float64[np.ndarray, " n"]:
    """Lin et al. 2023, table 2, with the roundings of diffusers."""
    total = config.num_train_timesteps
    last = total
    if rules.drops_last and config.lambda_min_clipped is not None:
        # Levels whose log signal-to-noise ratio is below the limit are left out.
        last = int(np.searchsorted(_logs(training_sigmas(config)), -config.lambda_min_clipped, side="right"))
    points = count + rules.drops_last
    steps: np.ndarray
    if spacing == "linspace":
        steps = np.linspace(0, last - 1, points)[::-1]
        steps = np.round(steps) if rules.whole else steps
    elif spacing == "leading":
        steps = (np.arange(points) * (last // points))[::-1] + float(config.steps_offset)
    else:
        return np.round(np.arange(last, 0, -total / count)) - 1
    return np.asarray(steps[:count], np.float64)
