"""A checkpoint's scheduler config, and the noise levels of the training timesteps that it defines.

Host arithmetic in float64, no arrays of JAX. A noise level is a sigma as in Karras et al. 2022 (arXiv:2206.00364):
latents at level sigma are `x0 + sigma * noise`; the network sees them divided by `sqrt(sigma^2 + 1)`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from sdjax.diffusion import elementary
from sdjax.diffusion.scheduler_classes import filled_in
from sdjax.messages import quoted
from sdjax.models.config import ConfigError, read_config, require, require_positive

# What a zero terminal signal-to-noise ratio is lifted to: the least positive float16 (as in diffusers).
_LEAST_ALPHA_CUMPROD = 2.0**-24
# Training timesteps: 1,000 of all published models. With fewer than two there is nothing between noise and image.
LEAST_TIMESTEPS, MOST_TIMESTEPS = 2, 100_000
# By which a consistency model's timesteps are multiplied: 10.
_MOST_SCALING = 1e6

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
        _check_choices(self)
        _check_training_noise(self)
        _check_sampler_settings(self)

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
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


def _check_choices(config: SchedulerConfig) -> None:
    known_betas = config.trained_betas is not None or config.beta_schedule in _BETAS
    require(known_betas, f"beta_schedule = {quoted(config.beta_schedule)} is not one of {', '.join(_BETAS)}")
    for name, known in (
        ("prediction_type", PREDICTION_TYPES),
        ("timestep_spacing", (None, *TIMESTEP_SPACINGS)),
        ("final_sigmas_type", ("zero", "sigma_min")),
        ("interpolation_type", ("linear", "log_linear")),
        ("algorithm_type", (None, "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis")),
        ("solver_type", (None, "midpoint", "heun", "logrho", "bh1", "bh2")),
        ("solver_order", (None, 1, 2, 3)),
        ("variance_type", (None, *VARIANCES)),
    ):
        value = getattr(config, name)
        choices = ", ".join(str(choice) for choice in known if choice is not None)
        require(value in known, f"{name} = {quoted(value)} is not one of {choices}")


def _check_training_noise(config: SchedulerConfig) -> None:
    require_positive(config, "num_train_timesteps")
    require(
        LEAST_TIMESTEPS <= config.num_train_timesteps <= MOST_TIMESTEPS,
        f"num_train_timesteps = {quoted(config.num_train_timesteps)}: expected {LEAST_TIMESTEPS} to {MOST_TIMESTEPS}",
    )
    require(
        0 < config.beta_start <= config.beta_end < 1,
        f"beta_start = {config.beta_start}, beta_end = {config.beta_end}: expected numbers that rise, within 0 and 1",
    )
    require(
        config.trained_betas is None or all(0 < beta < 1 for beta in config.trained_betas),
        "trained_betas are not all between 0 and 1",
    )
    require(
        0 <= config.steps_offset < config.num_train_timesteps,
        f"steps_offset = {quoted(config.steps_offset)} is not within 0 to {config.num_train_timesteps - 1}",
    )
    require(
        config.trained_betas is None or len(config.trained_betas) == config.num_train_timesteps,
        "trained_betas has not one entry per training timestep",
    )


def _check_sampler_settings(config: SchedulerConfig) -> None:
    require_positive(config, "original_inference_steps", most=MOST_TIMESTEPS)
    require_positive(config, "timestep_scaling", most=_MOST_SCALING)
    require(sum(getattr(config, flag) for flag in _FLAGS) <= 1, f"only one of {', '.join(_FLAGS)} can be on")
    require(
        0 < config.dynamic_thresholding_ratio <= 1,
        f"dynamic_thresholding_ratio = {config.dynamic_thresholding_ratio}: expected a number above 0, up to 1",
    )
    least, most = SAMPLE_MAX_VALUES if config.thresholding else (0.0, math.inf)
    require(
        least <= config.sample_max_value <= most,
        f"sample_max_value = {config.sample_max_value}: expected a number from {least} to {most}",
    )
    for name in ("sigma_min", "sigma_max"):
        value = getattr(config, name)
        require(value is None or value > 0, f"{name} = {value} is not positive")
    require(
        config.algorithm_type not in ("dpmsolver", "sde-dpmsolver") or config.final_sigmas_type == "sigma_min",
        f"algorithm_type = {config.algorithm_type} needs final_sigmas_type = sigma_min",
    )


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
