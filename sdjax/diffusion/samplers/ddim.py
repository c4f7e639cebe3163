"""Samplers of latents of unit variance (`alpha * x0 + sqrt(1 - alpha^2) * noise`), as diffusers has them.

`scaled` are such latents; divided by alpha they are those in sigmas, which the network's denoiser is given. The
classes of diffusers go down from a timestep to where they think the next one is. Where that is not the next one laid,
the network is told the latter all the same, and takes the latents for what they are not: that is followed here.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from sdjax.diffusion.samplers.sampler_run import SamplerRun, Step, alpha
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.diffusion.tableau import Vector
from sdjax.diffusion.timestep_spacing import ScheduleError


def _reached(run: SamplerRun, step: Step) -> float:
    """The noise level at which a step of DDIM or PNDM arrives."""
    if run.steps.spacing == "k_diffusion":
        return step.after
    return _level_or_last(run, step.timestep - run.config.num_train_timesteps // run.steps.laid)


def _level_or_last(run: SamplerRun, timestep: float) -> float:
    """The noise at a whole timestep; below all of them what comes after the last step."""
    if round(timestep) >= 0:
        return run.level_of(timestep)
    return 0.0 if run.config.set_alpha_to_one else float(run.levels[0])


def ddpm(run: SamplerRun) -> Vector:
    """Ho et al. 2020 (arXiv:2006.11239), algorithm 2, with steps that skip."""
    scaled = run.start * alpha(run.steps.sigmas[0])
    for step in run:
        now, after = alpha(step.now), alpha(step.after)
        x = scaled / now
        denoised = run.denoise(x, step.now, step.timestep)
        share = 1 - now / after * (now / after)  # beta of the whole step
        left = (1 - after * after) / (1 - now * now)
        scaled = denoised * (after * share / (1 - now * now)) + x * (now / after * left * now)
        variance = share if run.config.variance_type == "fixed_large" else left * share
        if step.after > 0:
            scaled = scaled + run.noise() * math.sqrt(variance)
    return scaled


def ddim(run: SamplerRun) -> Vector:
    """Song et al. 2021 (arXiv:2010.02502), equation 12."""
    scaled = run.start * alpha(run.steps.sigmas[0])
    for step in run:
        x = scaled / alpha(step.now)
        denoised = run.denoise(x, step.now, step.timestep)
        before = _reached(run, step)
        now, after = (share * share for share in (alpha(step.now), alpha(before)))
        up = run.eta * math.sqrt(max((1 - after) / (1 - now) * (1 - now / after), 0.0))
        direction = (x - denoised) / step.now * math.sqrt(max(1 - after - up * up, 0.0))
        scaled = denoised * math.sqrt(after) + direction
        if up > 0:
            scaled = scaled + run.noise() * up
    return scaled


class _Outputs:
    """The network's own outputs, of which PNDM takes sums, and the way back to noise."""

    def __init__(self, run: SamplerRun) -> None:
        self._run = run
        self._is_v = run.config.prediction_type == "v_prediction"

    def of(self, scaled: Vector, sigma: float, timestep: float | None = None) -> tuple[Vector, Vector]:
        """The latents, now in a register, and what the network gives for them."""
        x = scaled / alpha(sigma)
        denoised = self._run.denoise(x, sigma, timestep)
        noise = (x - denoised) / sigma
        output = noise * alpha(sigma) - denoised * (sigma * alpha(sigma)) if self._is_v else noise
        return x * alpha(sigma), self._run.keep(output)

    def moved(self, scaled: Vector, output: Vector, now: float, after: float) -> Vector:
        """Liu et al. 2022 (arXiv:2202.09778), equation 11: the same step as DDIM's."""
        noise = output * alpha(now) + scaled * (now * alpha(now)) if self._is_v else output
        return (scaled / alpha(now) + noise * (after - now)) * alpha(after)


# Adams and Bashforth's weights of the last outputs, newest first.
_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _sum(outputs: list[Vector], weights: tuple[float, ...]) -> Vector:
    total = outputs[0] * weights[0]
    for output, weight in zip(outputs[1:], weights[1:], strict=True):
        total = total + output * weight
    return total


def plms(run: SamplerRun) -> Vector:
    """Liu et al. 2022, the pseudo linear multistep method; its second step is asked twice, as in Stable Diffusion.

    diffusers leaves out steps of an image in the list of what is asked. So the latents are one step noisier from then
    on than the network is told, where two or more are left out.
    """
    steps = run.counted_steps()
    asked = [*steps[:2], *steps[1:]][run.skipped :]
    scaled = run.start_at(asked[0].now) * alpha(asked[0].now)
    outputs = _Outputs(run)
    history: list[Vector] = []
    first = scaled
    for count, step in enumerate(asked):
        run.begin_step(step.number)
        scaled, output = outputs.of(scaled, step.now, step.timestep)
        if count == 1:  # back to the beginning, with the mean of both outputs
            begin = _began(run, asked[0], step)
            scaled = outputs.moved(first, (output + history[0]) / 2, begin, step.now)
            continue
        first = scaled if count == 0 else first
        history = [output, *history][: len(_ADAMS)]
        scaled = outputs.moved(scaled, _sum(history, _ADAMS[len(history) - 1]), step.now, _reached(run, step))
    return scaled


def _began(run: SamplerRun, first: Step, second: Step) -> float:
    """Where diffusers thinks that the first step began, seen from the second."""
    if run.steps.spacing == "k_diffusion":
        return first.now
    return run.level_of(second.timestep + run.config.num_train_timesteps // run.steps.laid)


# Steps by Runge and Kutta's method before there are outputs enough, and the weights of the outputs in one.
_RUNGE_KUTTA_STEPS = 3
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class _Move(NamedTuple):
    """One evaluation in PNDM: told `timestep` (None: that of `now`) at the level `now`; and a move between levels."""

    number: int
    timestep: float | None
    now: float
    begin: float
    after: float


def pndm(run: SamplerRun) -> Vector:
    """Liu et al. 2022, algorithm 2: three pseudo Runge-Kutta steps, then linear multistep ones."""
    count = len(run.counted_steps())
    if count <= _RUNGE_KUTTA_STEPS:
        raise ScheduleError(f"steps = {count}: pndm takes {_RUNGE_KUTTA_STEPS + 1} at least; plms takes any number")
    moves = _by_levels(run) if run.steps.spacing == "k_diffusion" else _by_timesteps(run)
    scaled = run.start_at(moves[0].now) * alpha(moves[0].now)
    outputs = _Outputs(run)
    history: list[Vector] = []
    begin = total = scaled
    for index, move in enumerate(moves):
        run.begin_step(move.number)
        scaled, output = outputs.of(scaled, move.now, move.timestep)
        pseudo = index < len(_RUNGE_KUTTA) * _RUNGE_KUTTA_STEPS
        stage = index % len(_RUNGE_KUTTA) if pseudo else 0
        if stage == 0:
            begin, history = scaled, [output, *history][: len(_ADAMS)]
        total = output * _RUNGE_KUTTA[stage] + (total if stage else output * 0.0)
        if pseudo:
            total = run.keep(total) if stage in (1, 2) else total
            moved_by = total if stage == len(_RUNGE_KUTTA) - 1 else output
        else:
            moved_by = _sum(history, _ADAMS[len(history) - 1])
        scaled = outputs.moved(begin, moved_by, move.begin, move.after)
    return scaled


def _by_levels(run: SamplerRun) -> list[_Move]:
    """Runge and Kutta's middle is that of the logarithms of the levels."""
    moves = []
    for step in run:
        if step.number < _RUNGE_KUTTA_STEPS:
            middle = math.sqrt(step.now * step.after)
            moves += [
                _Move(step.number, step.timestep, step.now, step.now, middle),
                _Move(step.number, None, middle, step.now, middle),
                _Move(step.number, None, middle, step.now, step.after),
                _Move(step.number, None, step.after, step.now, step.after),
            ]
        else:
            moves.append(_Move(step.number, step.timestep, step.now, step.now, step.after))
    return moves


def _by_timesteps(run: SamplerRun) -> list[_Move]:
    """As diffusers, which leaves out steps of an image in the list of what is asked, but not in that of beginnings."""
    steps = run.counted_steps()
    half = run.config.num_train_timesteps // run.steps.laid // 2
    told = []
    for step, following in itertools.pairwise(steps[: _RUNGE_KUTTA_STEPS + 1]):
        # The middle is seen from both ends, which differ by one if they are an odd number of timesteps apart.
        middle = following.timestep + half
        told += [(step.number, timestep) for timestep in (step.timestep, middle, middle, following.timestep)]
    begins = [run.level_of(timestep) for _, timestep in told]
    moves = []
    asked = [*told, *((step.number, step.timestep) for step in steps[_RUNGE_KUTTA_STEPS:])][run.skipped :]
    for index, (number, timestep) in enumerate(asked):
        now = run.level_of(timestep)
        if index < len(told):
            after = _level_or_last(run, timestep - (0 if index % 2 else half))
            begin = begins[index - index % len(_RUNGE_KUTTA)]
        else:
            begin, after = now, _level_or_last(run, timestep - run.config.num_train_timesteps // run.steps.laid)
        moves.append(_Move(number, timestep, now, begin, after))
    return moves


def distilled_timesteps(config: SchedulerConfig, count: int) -> Float64[np.ndarray, " n"]:
    """Some of the timesteps for which a consistency model was distilled.

    Raises:
      ScheduleError: if it was distilled for fewer.
    """
    original = config.original_inference_steps
    if original > config.num_train_timesteps:
        raise ScheduleError(
            f"the model has {config.num_train_timesteps} training timesteps, fewer than the {original} steps "
            "(original_inference_steps) from which this sampler takes its own; name another sampler"
        )
    if count > original:
        raise ScheduleError(f"steps = {count} is not within 1 to {original}, the steps of the distilled model")
    known = np.arange(1, original + 1) * (config.num_train_timesteps // original) - 1
    return np.asarray(known[::-1][np.floor(np.linspace(0, original, count, endpoint=False)).astype(int)], np.float64)


# Of consistency models: the standard deviation of data (Song et al. 2023, arXiv:2303.01469, appendix C).
_SIGMA_DATA = 0.5


def lcm(run: SamplerRun) -> Vector:
    """Luo et al. 2023 (arXiv:2310.04378), algorithm 3."""
    scaled = run.start * alpha(run.steps.sigmas[0])
    for step in run:
        x = scaled / alpha(step.now)
        denoised = run.denoise(x, step.now, step.timestep)
        time = step.timestep * run.config.timestep_scaling
        skip = _SIGMA_DATA * _SIGMA_DATA / (time * time + _SIGMA_DATA * _SIGMA_DATA)
        scaled = denoised * (time / math.sqrt(time * time + _SIGMA_DATA * _SIGMA_DATA)) + x * (skip * alpha(step.now))
        if not step.last:
            after = alpha(step.after)
            scaled = scaled * after + run.noise() * math.sqrt(1 - after * after)
    return scaled


def tcd(run: SamplerRun) -> Vector:
    """Zheng et al. 2024 (arXiv:2402.19159), algorithm 4; `eta` is the paper's gamma."""
    scaled = run.start * alpha(run.steps.sigmas[0])
    for step in run:
        x = scaled / alpha(step.now)
        denoised = run.denoise(x, step.now, step.timestep)
        following = 0.0 if step.last else float(run.steps.timesteps[step.number + 1])
        lower = run.level_below((1 - run.eta) * following)
        scaled = (denoised + (x - denoised) / step.now * lower) * alpha(lower)
        if run.eta > 0 and not step.last:
            ratio = min(alpha(step.after) / alpha(lower), 1.0)
            scaled = scaled * ratio + run.noise() * math.sqrt(1 - ratio * ratio)
    return scaled
