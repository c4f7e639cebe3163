"""Samplers of latents of unit variance (`alpha * x0 + sqrt(1 - alpha^2) * noise`), as diffusers has them.

`scaled` are such latents; divided by alpha they are those in sigmas, which the network's denoiser is given. The
classes of diffusers go down from a timestep to where they think the next one is. Where that is not the next one laid,
the network is told the latter all the same, and takes the latents for what they are not: that is followed here.
"""

import math

import numpy as np
from jaxtyping import Float64

from sdjax.diffusion.samplers.run import Run, Step, alpha
from sdjax.diffusion.schedule import ScheduleError, SchedulerConfig
from sdjax.diffusion.tableau import Vector


def _reached(run: Run, step: Step) -> float:
    """The noise level at which a step of DDIM or PNDM arrives."""
    if run.steps.spacing == "k_diffusion":
        return step.after
    before = round(step.timestep) - run.config.num_train_timesteps // run.steps.laid
    if before >= 0:
        return float(run.levels[before])
    return 0.0 if run.config.set_alpha_to_one else float(run.levels[0])


def ddpm(run: Run) -> Vector:
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


def ddim(run: Run) -> Vector:
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

    def __init__(self, run: Run) -> None:
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


def plms(run: Run) -> Vector:
    """Liu et al. 2022, the pseudo linear multistep method; its first step is taken twice, as in Stable Diffusion."""
    scaled = run.start * alpha(run.steps.sigmas[0])
    outputs = _Outputs(run)
    history: list[Vector] = []
    first, first_step = scaled, None
    for step in run:
        scaled, output = outputs.of(scaled, step.now, step.timestep)
        if step.number == 0:
            first, first_step = scaled, step
        elif step.number == 1 and first_step is not None:
            # Back to the beginning, with the mean of both outputs; then on from where it ends.
            begin = _began(run, first_step, step)
            scaled = outputs.moved(first, (output + history[0]) / 2, begin, step.now)
            scaled, output = outputs.of(scaled, step.now, step.timestep)
        history = [output, *history][: len(_ADAMS)]
        scaled = outputs.moved(scaled, _sum(history, _ADAMS[len(history) - 1]), step.now, _reached(run, step))
    return scaled


def _began(run: Run, first: Step, second: Step) -> float:
    """Where diffusers thinks that the first step began, seen from the second."""
    if run.steps.spacing == "k_diffusion":
        return first.now
    return run.level_of(second.timestep + run.config.num_train_timesteps // run.steps.laid)


# Steps by Runge and Kutta's method before there are outputs enough.
_RUNGE_KUTTA_STEPS = 3


def pndm(run: Run) -> Vector:
    """Liu et al. 2022, algorithm 2: three pseudo Runge-Kutta steps, then linear multistep ones."""
    count = len(run.steps.timesteps)
    if count <= _RUNGE_KUTTA_STEPS:
        raise ScheduleError(f"steps = {count}: pndm takes {_RUNGE_KUTTA_STEPS + 1} at least; plms takes any number")
    free = run.steps.spacing == "k_diffusion"
    half = run.config.num_train_timesteps // run.steps.laid // 2

    def following(step: Step) -> float:
        return float(run.steps.timesteps[step.number + 1])

    scaled = run.start * alpha(run.steps.sigmas[0])
    outputs = _Outputs(run)
    history: list[Vector] = []
    for step in run:
        begin, one = outputs.of(scaled, step.now, step.timestep)
        history = [one, *history][: len(_ADAMS)]
        if step.number >= _RUNGE_KUTTA_STEPS:
            scaled = outputs.moved(begin, _sum(history, _ADAMS[len(history) - 1]), step.now, _reached(run, step))
            continue
        if free:
            down = middle = math.sqrt(step.now * step.after)
        else:  # the middle is seen from both ends, which differ by one if they are an odd number of timesteps apart
            down, middle = run.level_of(step.timestep - half), run.level_of(following(step) + half)
        end = step.after if free else run.level_of(following(step))
        _, two = outputs.of(outputs.moved(begin, one, step.now, down), middle)
        total = run.keep(one / 6 + two / 3)
        _, three = outputs.of(outputs.moved(begin, two, step.now, middle), middle)
        total = run.keep(total + three / 3)
        _, four = outputs.of(outputs.moved(begin, three, step.now, end), end)
        scaled = outputs.moved(begin, total + four / 6, step.now, end)
    return scaled


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


def lcm(run: Run) -> Vector:
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


def tcd(run: Run) -> Vector:
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
