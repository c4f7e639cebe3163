"""Every sampler as a pair of pure functions, and the registry of them.

A sampler carries a state with `latents`, said in sigmas: at level sigma they are `x0 + sigma * noise`. Its
`step(denoise, state, coefficients, noise)` is handed the denoiser itself, `denoise(latents, level)`, which gives the
clean latents that the network (with parametrisation and guidance) expects. The coefficients of all steps
are worked out beforehand in float64 by `coefficients(config, steps)`; inside a step each is an array
that broadcasts over latents.

To add a sampler: its State and Coefficients, the three functions, one row in `SAMPLERS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.diffusion.schedule import SchedulerConfig, StepRules, Steps, training_sigmas

Latents = Float[Array, "b h w c"]
State = Any
Coefficients = Any
Info = tuple[()]


class Level(NamedTuple):
    """Where on the schedule the network is asked: the noise, and the timestep it is told."""

    sigma: Any
    timestep: Any


Denoise = Callable[[Latents, Level], Latents]


class Sampler(NamedTuple):
    """A sampling algorithm.

    init: first latents -> state.
    step: (denoise, state, coefficients of this step, noise or None) -> (state, info).
    coefficients: (scheduler config, steps) -> a NamedTuple of float64 tables, one row per step.
    rules: how its steps are laid.
    draws_noise: whether `step` wants standard normal noise.
    """

    init: Callable[[Latents], State]
    step: Callable[[Denoise, State, Coefficients, Latents | None], tuple[State, Info]]
    coefficients: Callable[[SchedulerConfig, Steps], Coefficients]
    rules: StepRules
    draws_noise: bool = False


class LatentsState(NamedTuple):
    """The state of samplers that remember nothing else."""

    latents: Latents


def _levels(steps: Steps) -> Level:
    return Level(steps.sigmas[:-1], steps.timesteps)


# --- Euler: Karras et al. 2022, algorithm 2 without churn and without the correction ---


class EulerCoefficients(NamedTuple):
    """Of one step."""

    level: Level
    ratio: Any  # sigma of the next level over sigma


def _euler_coefficients(config: SchedulerConfig, steps: Steps) -> EulerCoefficients:
    return EulerCoefficients(_levels(steps), steps.sigmas[1:] / steps.sigmas[:-1])


def _euler_step(
    denoise: Denoise, state: LatentsState, coefficients: EulerCoefficients, noise: Latents | None
) -> tuple[LatentsState, Info]:
    denoised = denoise(state.latents, coefficients.level)
    return LatentsState(denoised + coefficients.ratio * (state.latents - denoised)), ()


# --- Euler ancestral: k-diffusion, `sample_euler_ancestral` ---


class EulerAncestralCoefficients(NamedTuple):
    """Of one step."""

    level: Level
    ratio: Any  # of the level to which it goes down, over sigma
    up: Any  # the noise put back


def _euler_ancestral_coefficients(config: SchedulerConfig, steps: Steps) -> EulerAncestralCoefficients:
    now, after = steps.sigmas[:-1], steps.sigmas[1:]
    up = np.minimum(after, np.sqrt(after**2 * (now**2 - after**2) / now**2))
    down = np.sqrt(after**2 - up**2)
    return EulerAncestralCoefficients(_levels(steps), down / now, up)


def _euler_ancestral_step(
    denoise: Denoise, state: LatentsState, coefficients: EulerAncestralCoefficients, noise: Latents | None
) -> tuple[LatentsState, Info]:
    denoised = denoise(state.latents, coefficients.level)
    latents = denoised + coefficients.ratio * (state.latents - denoised)
    return LatentsState(latents + coefficients.up * noise), ()


# --- DDIM: Song et al. 2021 (arXiv:2010.02502), equation 12 with eta = 0 ---


class DDIMCoefficients(NamedTuple):
    """Of one step."""

    level: Level
    signal: Any
    direction: Any  # of the noise found, (latents - denoised) / sigma


def _ddim_coefficients(config: SchedulerConfig, steps: Steps) -> DDIMCoefficients:
    """Steps go down by a whole number of timesteps, `num_train_timesteps // steps`, as in diffusers.

    Where that is not the next timestep laid (linspace, trailing), the network is told that one all the
    same, and takes latents of unit variance for what they are; the last row's result is not scaled at all.
    With Karras' sigmas each step goes to the next of these.
    """
    levels = training_sigmas(config)
    if not steps.karras:
        previous = np.round(steps.timesteps).astype(int) - config.num_train_timesteps // len(steps.timesteps)
        final = 0.0 if config.set_alpha_to_one else levels[0]
        reached = np.where(previous >= 0, levels[np.maximum(previous, 0)], final)
    else:
        reached = steps.sigmas[1:]
    scale = np.append(np.sqrt(1 + steps.sigmas[1:-1] ** 2), 1.0) / np.sqrt(1 + reached**2)
    return DDIMCoefficients(_levels(steps), scale, scale * reached / steps.sigmas[:-1])


def _ddim_step(
    denoise: Denoise, state: LatentsState, coefficients: DDIMCoefficients, noise: Latents | None
) -> tuple[LatentsState, Info]:
    denoised = denoise(state.latents, coefficients.level)
    direction = state.latents - denoised
    return LatentsState(coefficients.signal * denoised + coefficients.direction * direction), ()


# --- DPM-Solver++(2M): Lu et al. 2022 (arXiv:2211.01095), algorithm 2, as in k-diffusion ---


# Below this many steps diffusers' solver ends with a step of first order (`lower_order_final`).
_FEW_STEPS = 15


class DPMpp2MState(NamedTuple):
    """Two steps' worth."""

    latents: Latents
    before: Latents  # the clean latents found one step before


class DPMpp2MCoefficients(NamedTuple):
    """Of one step."""

    level: Level
    ratio: Any  # sigma of the next level over sigma
    slope: Any  # how far the last two results are followed; 0 in first-order steps


def _dpmpp_2m_coefficients(config: SchedulerConfig, steps: Steps) -> DPMpp2MCoefficients:
    """First order in the first step; in the last one too if it ends without noise or steps are few."""
    now, after = steps.sigmas[:-1], steps.sigmas[1:]
    count = len(now)
    slope = np.zeros(count)
    for index in range(1, count):
        last = index == count - 1
        if last and (after[index] == 0 or count < _FEW_STEPS):
            continue
        step = np.log(now[index] / after[index])
        step_before = np.log(now[index - 1] / now[index])
        slope[index] = step / (2 * step_before)
    return DPMpp2MCoefficients(_levels(steps), after / now, slope)


def _dpmpp_2m_step(
    denoise: Denoise, state: DPMpp2MState, coefficients: DPMpp2MCoefficients, noise: Latents | None
) -> tuple[DPMpp2MState, Info]:
    denoised = denoise(state.latents, coefficients.level)
    ahead = denoised + coefficients.slope * (denoised - state.before)
    latents = ahead + coefficients.ratio * (state.latents - ahead)
    return DPMpp2MState(latents, denoised), ()


_EULER_RULES = StepRules("linspace", whole=False, drops_last=False, karras_over="steps", unit_start=False)
_DDIM_RULES = StepRules("leading", whole=True, drops_last=False, karras_over="steps", unit_start=True)
_DPM_RULES = StepRules("linspace", whole=True, drops_last=True, karras_over="training", unit_start=True)

SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(LatentsState, _ddim_step, _ddim_coefficients, _DDIM_RULES),
    "euler": Sampler(LatentsState, _euler_step, _euler_coefficients, _EULER_RULES),
    "euler_ancestral": Sampler(
        LatentsState, _euler_ancestral_step, _euler_ancestral_coefficients, _EULER_RULES, draws_noise=True
    ),
    "dpmpp_2m": Sampler(
        lambda latents: DPMpp2MState(latents, jnp.zeros_like(latents)),
        _dpmpp_2m_step,
        _dpmpp_2m_coefficients,
        _DPM_RULES,
    ),
}

# diffusers' classes, for a checkpoint's own scheduler.
CLASSES = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
