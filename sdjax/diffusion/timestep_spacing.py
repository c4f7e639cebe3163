"""The steps of a sampler: which timesteps and sigmas it visits. Host arithmetic in float64, no arrays of JAX.

A spacing places the timesteps (Lin et al. 2023, arXiv:2305.08891, table 2); a schedule may give other sigmas.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from sdjax.diffusion.scheduler_config import TIMESTEP_SPACINGS, SchedulerConfig, training_sigmas
from sdjax.diffusion.schedules import exponential_sigmas, log_levels, schedule_row, timestep_of

Spacing = Literal["leading", "linspace", "trailing", "k_diffusion"]
# Of diffusers' schedulers, as each class rounds them; and k-diffusion's, which A1111 and ComfyUI use for all samplers.
SPACINGS = (*TIMESTEP_SPACINGS, "k_diffusion")


class ScheduleError(ValueError):
    """Steps that a schedule can't give."""


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
    skipped_timesteps, skipped_sigmas: (k,) of the steps that img2img leaves out before these.
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
    """The last steps of a schedule, as diffusers' img2img takes them: SDEdit (Meng et al. 2022, arXiv:2108.01073).

    Args:
      steps: the whole.
      strength: from 0 (none of them) to 1 (all); its share of the steps is rounded down.

    Returns:
      those left, whose first latents are the image latents, and `start` times noise.
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
      schedule: of `schedule_row`.
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
    laid = schedule_row(schedule).free(levels, more)
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
    between = schedule_row(schedule).between
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
        *front, last = exponential_sigmas(float(levels[0]), float(levels[-1]), count + 1)
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
        last = int(np.searchsorted(log_levels(training_sigmas(config)), -config.lambda_min_clipped, side="right"))
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
