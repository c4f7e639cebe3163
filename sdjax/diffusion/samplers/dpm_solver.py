"""Exponential integrators: the DPM-Solvers, DEIS and UniPC.

Time is the negative logarithm of sigma, and `h` the step in it. A solver `of data` integrates the denoised latents
(DPM-Solver++, Lu et al. 2022, arXiv:2211.01095), one of noise what the network found (DPM-Solver, arXiv:2206.00927).
"""

import math
from collections.abc import Callable

import numpy as np

from sdjax.diffusion import elementary
from sdjax.diffusion.samplers.sampler_run import SamplerRun, Step, ancestral
from sdjax.diffusion.tableau import Vector
from sdjax.diffusion.timestep_spacing import ScheduleError

# Below this many steps diffusers ends with steps of lower order (`lower_order_final`).
_FEW_STEPS = 15


def _time(sigma: float) -> float:
    return -elementary.log(sigma) if sigma > 0 else math.inf


def _multistep_order(run: SamplerRun, step: Step, before: int) -> int:
    """The order of a step of diffusers' multistep solvers; `before` are the outputs of earlier steps.

    The last step is of first order if it ends without noise or if that was asked for; if steps are few, the last but
    one is of second order at most.
    """
    config, count = run.config, len(run.steps.timesteps)
    few = config.lower_order_final is not False and run.steps.laid < _FEW_STEPS
    order = min(run.order, before + 1)
    if step.last and (config.euler_at_final or few or step.after == 0):
        return 1
    if step.after == step.now:  # nothing is done, at any order
        return 1
    return min(order, 2) if few and step.number == count - 2 else order


def _differences(history: list[Vector], times: list[float], h: float) -> tuple[Vector, Vector | None]:
    """First and second divided differences of the last outputs, newest first, in units of the step."""
    r0 = (times[0] - times[1]) / h
    first = (history[0] - history[1]) / r0
    if len(history) < 3:
        return first, None
    r1 = (times[1] - times[2]) / h
    earlier = (history[1] - history[2]) / r1
    return first + (first - earlier) * (r0 / (r0 + r1)), (first - earlier) / (r0 + r1)


def dpmpp_multistep(run: SamplerRun) -> Vector:
    """DPM-Solver++(2M), algorithm 2, and (3M); diffusers' `dpmsolver++`."""
    x = run.start
    heun = run.config.solver_type == "heun"
    history: list[Vector] = []
    times: list[float] = []
    for step in run:
        denoised = run.denoise(x, step.now, step.timestep)
        history, times = [denoised, *history][: run.order], [_time(step.now), *times][: run.order]
        h = _time(step.after) - times[0]
        decay = elementary.expm1(-h)
        order = _multistep_order(run, step, len(history) - 1)
        x = x * (step.after / step.now) - denoised * decay
        if order > 1:
            first, second = _differences(history[:order], times, h)
            x = x + first * (decay / h + 1 if heun or second is not None else -decay / 2)
            if second is not None:
                x = x - second * ((decay + h) / (h * h) - 0.5)
    return run.ended(x)


def dpm_multistep(run: SamplerRun) -> Vector:
    """DPM-Solver in several steps; diffusers' `dpmsolver`."""
    x = run.start
    heun = run.config.solver_type == "heun"
    history: list[Vector] = []
    times: list[float] = []
    for step in run:
        slope = run.keep((x - run.denoise(x, step.now, step.timestep)) / step.now)
        history, times = [slope, *history][: run.order], [_time(step.now), *times][: run.order]
        order = _multistep_order(run, step, len(history) - 1)
        x = x + slope * (step.after - step.now)
        if order > 1:
            h = _time(step.after) - times[0]
            growth = elementary.expm1(h)
            first, second = _differences(history[:order], times, h)
            x = x - first * (step.after * (growth / h - 1 if heun or second is not None else growth / 2))
            if second is not None:
                x = x - second * (step.after * ((growth - h) / (h * h) - 0.5))
    return run.ended(x)


def dpmpp_2m_sde(run: SamplerRun) -> Vector:
    """DPM-Solver++(2M) of the stochastic equation; k-diffusion, `sample_dpmpp_2m_sde`; diffusers' `sde-dpmsolver++`."""
    if run.order > 2:
        raise ScheduleError("solver_order = 3: dpmpp_2m_sde has 1 and 2; dpmpp_3m_sde is of order 3")
    x = run.start
    before: tuple[Vector, float] | None = None
    for step in run:
        denoised = run.denoise(x, step.now, step.timestep)
        if step.after == 0:
            return denoised
        time = _time(step.now)
        h = _time(step.after) - time
        whole = h * (1 + run.eta)
        decay = elementary.expm1(-whole)
        x = x * elementary.exp(-whole) - denoised * decay
        if before is not None and _multistep_order(run, step, 1) > 1:
            difference = (denoised - before[0]) * (h / (time - before[1]))
            x = x + difference * (1 + decay / whole if run.config.solver_type == "heun" else -decay / 2)
        if run.eta > 0:
            up = step.after * math.sqrt(-elementary.expm1(-2 * h * run.eta))
            x = x + run.brownian(step.now, step.after) * up
        before = (denoised, time)
    return run.ended(x)


def dpm_2m_sde(run: SamplerRun) -> Vector:
    """DPM-Solver of the stochastic equation in several steps; diffusers' `sde-dpmsolver`."""
    if run.order > 2:
        raise ScheduleError("solver_order = 3: dpm_solver_2m_sde has 1 and 2")
    x = run.start
    before: tuple[Vector, float] | None = None
    for step in run:
        slope = run.keep((x - run.denoise(x, step.now, step.timestep)) / step.now)
        if step.after == 0:
            return x - slope * step.now
        time = _time(step.now)
        h = _time(step.after) - time
        growth = elementary.expm1(h)
        x = x - slope * (2 * step.after * growth)
        if before is not None and _multistep_order(run, step, 1) > 1:
            difference = (slope - before[0]) * (h / (time - before[1]))
            heun = run.config.solver_type == "heun"
            x = x - difference * (step.after * (2 * (growth / h - 1) if heun else growth))
        x = x + run.brownian(step.now, step.after) * (step.after * math.sqrt(elementary.expm1(2 * h)))
        before = (slope, time)
    return run.ended(x)


def dpmpp_3m_sde(run: SamplerRun) -> Vector:
    """k-diffusion, `sample_dpmpp_3m_sde`."""
    x = run.start
    history: list[Vector] = []
    times: list[float] = []
    for step in run:
        denoised = run.denoise(x, step.now, step.timestep)
        if step.after == 0:
            return denoised
        history, times = [denoised, *history][:3], [_time(step.now), *times][:3]
        h = _time(step.after) - times[0]
        whole = h * (1 + run.eta)
        decay = elementary.expm1(-whole)
        x = x * elementary.exp(-whole) - denoised * decay
        if len(history) > 1:
            first, second = _differences(history, times, h)
            phi_2 = decay / whole + 1
            x = x + first * phi_2
            if second is not None:
                x = x - second * (phi_2 / whole - 0.5)
        if run.eta > 0:
            up = step.after * math.sqrt(-elementary.expm1(-2 * h * run.eta))
            x = x + run.brownian(step.now, step.after) * up
    return x


def dpmpp_2s_ancestral(run: SamplerRun) -> Vector:
    """DPM-Solver++(2S), algorithm 1, down to a lower level, and noise on top; k-diffusion's of the same name."""
    x = run.start
    for step in run:
        denoised = run.denoise(x, step.now, step.timestep)
        down, up = ancestral(step.now, step.after, run.eta)
        if down == 0:
            x = denoised
        else:
            middle = math.sqrt(step.now * down)
            halfway = x * (middle / step.now) + denoised * (1 - middle / step.now)
            denoised = run.denoise(halfway, middle)
            x = x * (down / step.now) + denoised * (1 - down / step.now)
        if up > 0:
            x = x + run.noise() * up
    return x


def dpmpp_sde(run: SamplerRun) -> Vector:
    """DPM-Solver++ of the stochastic equation; k-diffusion, `sample_dpmpp_sde` at its midpoint."""
    x = run.start
    for step in run:
        denoised = run.denoise(x, step.now, step.timestep)
        if step.after == 0:
            return denoised
        middle = math.sqrt(step.now * step.after)
        down, up = ancestral(step.now, middle, run.eta)
        halfway = x * (down / step.now) + denoised * (1 - down / step.now)
        if up > 0:
            halfway = halfway + run.brownian(step.now, middle) * up
        denoised = run.denoise(halfway, middle)
        down, up = ancestral(step.now, step.after, run.eta)
        x = x * (down / step.now) + denoised * (1 - down / step.now)
        if up > 0:
            x = x + run.brownian(step.now, step.after) * up
    return x


def _singlestep_orders(run: SamplerRun) -> list[int]:
    """How diffusers cuts the evaluations into steps of several, each one order higher than the one before."""
    count, order = run.steps.laid, run.order
    orders = (list(range(1, order + 1)) * (count // order + 1))[:count]
    if order > 1 and count % order == 0:
        if run.config.lower_order_final or run.steps.sigmas[-1] == 0:
            orders[-order:] = [1, 1] if order == 2 else [1, 2, 1]
    elif run.steps.sigmas[-1] == 0:
        orders[-1] = 1
    return orders[run.steps.skipped :]


def dpmpp_singlestep(run: SamplerRun) -> Vector:
    """DPM-Solver++ in steps of `solver_order` evaluations, each of which counts as one step; diffusers' singlestep."""
    return _singlestep(run, _data_update)


def dpm_singlestep(run: SamplerRun) -> Vector:
    """The same with DPM-Solver."""
    return _singlestep(run, _noise_update)


_Update = Callable[[SamplerRun, Vector, list[Vector], list[float], float], Vector]


def _singlestep(run: SamplerRun, update: _Update) -> Vector:
    x = base = run.start
    history: list[Vector] = []
    sigmas: list[float] = []
    of_noise = update is _noise_update
    for step, order in zip(run, _singlestep_orders(run), strict=True):
        denoised = run.denoise(x, step.now, step.timestep)
        output = run.keep((x - denoised) / step.now) if of_noise else denoised
        history, sigmas = [output, *history][: run.order], [step.now, *sigmas][: run.order]
        order = min(order, len(history))
        if order == 1:
            base = x
        x = update(run, base, history[:order], sigmas[:order], step.after)
    return run.ended(x)


def _single_differences(
    history: list[Vector], sigmas: list[float], after: float, heun: bool
) -> tuple[Vector, Vector | None, float]:
    """Differences from the output at the base, the oldest."""
    oldest, times = history[-1], [_time(sigma) for sigma in sigmas]
    h = _time(after) - times[-1]
    r0 = (times[0] - times[-1]) / h
    newest = (history[0] - oldest) / r0
    if len(history) == 2 or not heun:
        return newest, None, h
    r1 = (times[1] - times[-1]) / h
    middle = (history[1] - oldest) / r1
    return (middle * r0 - newest * r1) / (r0 - r1), (newest - middle) * (2 / (r0 - r1)), h


def _data_update(run: SamplerRun, base: Vector, history: list[Vector], sigmas: list[float], after: float) -> Vector:
    ratio, heun = after / sigmas[-1], run.config.solver_type == "heun"
    x = base * ratio + history[-1] * (1 - ratio)
    if len(history) > 1:
        first, second, h = _single_differences(history, sigmas, after, heun)
        decay = elementary.expm1(-h)
        x = x + first * (decay / h + 1 if heun or len(history) == 3 else -decay / 2)
        if second is not None:
            x = x - second * ((decay + h) / (h * h) - 0.5)
    return x


def _noise_update(run: SamplerRun, base: Vector, history: list[Vector], sigmas: list[float], after: float) -> Vector:
    heun = run.config.solver_type == "heun"
    x = base + history[-1] * (after - sigmas[-1])
    if len(history) > 1:
        first, second, h = _single_differences(history, sigmas, after, heun)
        growth = elementary.expm1(h)
        x = x - first * (after * (growth / h - 1 if heun or len(history) == 3 else growth / 2))
        if second is not None:
            x = x - second * (after * ((growth - h) / (h * h) - 0.5))
    return x


def dpm_fast(run: SamplerRun) -> Vector:
    """DPM-Solver-fast (Lu et al. 2022, arXiv:2206.00927, appendix C); k-diffusion's of the same name.

    Steps are evaluations. It ends at the lowest level of the model, not at zero.
    """
    count = len(run.steps.timesteps)
    highest = float(run.steps.sigmas[0]) if run.steps.skipped else float(run.levels[-1])
    ends = np.linspace(_time(highest), _time(run.levels[0]), count // 3 + 2)
    orders = [3] * (count // 3 - 1) + [2, 1] if count % 3 == 0 else [3] * (count // 3) + [count % 3]
    x = run.start
    evaluation = 0
    for order, time, end in zip(orders, ends[:-1], ends[1:], strict=True):
        now, after = elementary.exp(-time), elementary.exp(-end)
        down, up = ancestral(now, after, run.eta)
        down = max(down, float(run.levels[0]))
        up = math.sqrt(max(after * after - down * down, 0.0)) if up > 0 else 0.0
        h = _time(down) - time
        run.begin_step(evaluation)
        slope = run.keep((x - run.denoise(x, now)) / now)
        following = x + slope * (down - now)
        if order > 1:
            # Of order 2 at one half, of order 3 at one third and two thirds of the step.
            share = 1 / order
            middle = elementary.exp(-(time + share * h))
            run.begin_step(evaluation + 1)
            ahead = x + slope * (middle - now)
            change = run.keep((ahead - run.denoise(ahead, middle)) / middle - slope)
            if order == 2:
                following = following - change * (down * elementary.expm1(h) / (2 * share))
            else:
                later = elementary.exp(-(time + 2 * share * h))
                bend = elementary.expm1(2 * share * h) / (2 * share * h) - 1
                run.begin_step(evaluation + 2)
                ahead = x + slope * (later - now) - change * (later * 2 * bend)
                change = (ahead - run.denoise(ahead, later)) / later - slope
                following = following - change * (down / (2 * share) * (elementary.expm1(h) / h - 1))
        x = following if up == 0 else following + run.noise() * up
        evaluation += order
    return x


def deis(run: SamplerRun) -> Vector:
    """Zhang and Chen 2023 (arXiv:2204.13902): multistep, with polynomials in log sigma; diffusers' `logrho`."""
    x = run.start
    history: list[Vector] = []
    logs: list[float] = []
    for step in run:
        slope = run.keep((x - run.denoise(x, step.now, step.timestep)) / step.now)
        history, logs = [slope, *history][: run.order], [elementary.log(step.now), *logs][: run.order]
        order = _multistep_order(run, step, len(history) - 1)
        for index, past in enumerate(history[:order]):
            x = x + past * _integral_in_sigma(np.array(logs[:order]), index, step.now, step.after)
    return run.ended(x)


def _integral_in_sigma(logs: np.ndarray, index: int, now: float, after: float) -> float:
    """The integral over sigma of the polynomial in log sigma that is 1 at one node and 0 at the others."""
    others = np.delete(logs, index)
    factors = np.array(elementary.polynomial_with_roots(others)) / np.prod(logs[index] - others)

    return _primitive(factors, after) - _primitive(factors, now)


def _primitive(factors: np.ndarray, sigma: float) -> float:
    """The integral from 0 to sigma of a polynomial in log sigma."""
    if sigma == 0:
        return 0.0
    log, total, power = elementary.log(sigma), 0.0, 0.0
    for exponent, factor in enumerate(factors):
        power = sigma * elementary.power(log, exponent) - exponent * power
        total += factor * power
    return total


def uni_pc(run: SamplerRun) -> Vector:
    """Zhao et al. 2023 (arXiv:2302.04867), algorithm 1 with bh1, in diffusers' form."""
    return _uni_pc(run, bh2=False)


def uni_pc_bh2(run: SamplerRun) -> Vector:
    """The same with bh2."""
    return _uni_pc(run, bh2=True)


def _uni_pc(run: SamplerRun, bh2: bool) -> Vector:
    config, count = run.config, len(run.steps.timesteps)
    of_data = config.predict_x0
    x = run.start
    corrected, order = x, 0
    history: list[Vector] = []  # newest first
    sigmas: list[float] = []
    for step in run:
        denoised = run.denoise(x, step.now, step.timestep)
        output = denoised if of_data else run.keep((x - denoised) / step.now)
        if step.number > 0 and run.steps.skipped + step.number - 1 not in config.disable_corrector:
            x = run.keep(_united(corrected, output, history[:order], sigmas[:order], step.now, of_data, bh2))
        history, sigmas = [output, *history][: run.order], [step.now, *sigmas][: run.order]
        order = min(run.order, len(history))
        if config.lower_order_final is not False or step.after in (0, step.now):
            order = min(order, count - step.number)
        corrected = x
        x = _united(corrected, None, history[:order], sigmas[:order], step.after, of_data, bh2)
    return run.ended(x)


def _united(
    x: Vector,
    ahead: Vector | None,
    history: list[Vector],
    sigmas: list[float],
    after: float,
    of_data: bool,
    bh2: bool,
) -> Vector:
    """UniP's step, or with the network's output at its end UniC's, from the newest of `sigmas` to `after`."""
    order, newest = len(history), history[0]
    now = sigmas[0]
    result = x * (after / now) + newest * (1 - after / now) if of_data else x + newest * (after - now)
    if order == 1 and ahead is None:
        return result
    h = _time(after) - _time(now)
    signed = -h if of_data else h
    ratios = [(_time(sigma) - _time(now)) / h for sigma in sigmas[1:]] + [1.0]
    scale = elementary.expm1(signed) if bh2 else signed
    moments, phi, factorial = [], elementary.expm1(signed) / signed - 1, 1
    for power in range(1, order + 1):
        moments.append(phi * factorial / scale)
        factorial *= power + 1
        phi = phi / signed - 1 / factorial
    matrix = [[elementary.power(ratio, power) for ratio in ratios] for power in range(order)]
    if ahead is not None:
        weights = [0.5] if order == 1 else elementary.solve(matrix, moments)
    else:
        weights = [0.5] if order == 2 else elementary.solve([row[:-1] for row in matrix[:-1]], moments[:-1])
    factor = -scale if of_data else -after * scale
    for weight, ratio, past in zip(weights, ratios, history[1:], strict=False):
        result = result + (past - newest) * (factor * weight / ratio)
    return result if ahead is None else result + (ahead - newest) * (factor * weights[-1])
