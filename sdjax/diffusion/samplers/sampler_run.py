"""What a sampler function is called with, its options, and the few formulas that several share."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from sdjax.diffusion import elementary
from sdjax.diffusion.scheduler_config import SchedulerConfig, training_sigmas
from sdjax.diffusion.schedules import sigma_of, timestep_of
from sdjax.diffusion.tableau import Recorder, Table, Vector
from sdjax.diffusion.timestep_spacing import Steps

# How multistep samplers begin in img2img, that is in the middle of the schedule: as diffusers' classes, which go on
# counting from the steps that were left out; or afresh, as k-diffusion and A1111.
MULTISTEP_STARTS = ("diffusers", "k_diffusion")


class Options(NamedTuple):
    """What may be set of a sampler, under the names of diffusers and k-diffusion.

    eta: share of fresh noise; None is the sampler's own default.
    s_churn, s_tmin, s_tmax: noise added before steps, and the sigmas between which it is (Karras et al. 2022,
      algorithm 2).
    s_noise: factor of all noise that is added.
    solver_order: of solvers that have several; None is the sampler's own default.
    multistep_start: one of `MULTISTEP_STARTS`; in k-diffusion's spacing it is always its own.
    """

    eta: float | None = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float | None = None
    s_noise: float = 1.0
    solver_order: int | None = None
    multistep_start: str = "diffusers"


class Step(NamedTuple):
    """One step: from sigma `now` to `after`; the network is told `timestep` at `now`."""

    number: int
    now: float
    after: float
    timestep: float
    last: bool


class SamplerRun:
    """What a sampler is called with: symbols of the latents, the network and the noise, and a record of what it does.

    Attributes:
      steps: the levels.
      config: the checkpoint's; of its second part only what is the sampler's own.
      levels: noise of each training timestep, rising.
      options: with the sampler's own defaults filled in.
    """

    def __init__(self, config: SchedulerConfig, steps: Steps, options: Options) -> None:
        self.config = config
        self.steps = steps
        self.options = options
        self.levels = training_sigmas(config)
        self._recorder = Recorder(self.timestep_of)

    def timestep_of(self, sigma: float) -> float:
        """What the network is told at a level between the laid ones."""
        return float(timestep_of(np.array([sigma]), self.levels)[0])

    def level_of(self, timestep: float) -> float:
        """The noise at a whole training timestep."""
        return float(self.levels[round(timestep)])

    def level_below(self, timestep: float) -> float:
        """The noise at any timestep: diffusers rounds it down, k-diffusion's spacing has levels in between."""
        if self.steps.spacing == "k_diffusion":
            return float(sigma_of(np.array([timestep]), self.levels)[0])
        return float(self.levels[math.floor(timestep)])

    @property
    def eta(self) -> float:
        """The share of fresh noise."""
        assert self.options.eta is not None, "the options are not filled in"
        return self.options.eta

    @property
    def order(self) -> int:
        """Of the solver."""
        assert self.options.solver_order is not None, "the options are not filled in"
        return self.options.solver_order

    @property
    def start(self) -> Vector:
        """The first latents: `steps.start` times standard normal noise."""
        return self._recorder.start

    def start_at(self, sigma: float) -> Vector:
        """The first latents of a sampler that begins img2img at another level than the first of the steps."""
        return self.start * (sigma / self.steps.start if self.steps.skipped else 1.0)

    @property
    def counts_skipped(self) -> bool:
        """Whether a multistep sampler goes on counting from the steps that are left out, as in diffusers."""
        free = self.steps.spacing == "k_diffusion"
        return self.steps.skipped > 0 and not free and self.options.multistep_start == "diffusers"

    @property
    def skipped(self) -> int:
        """The steps from which a multistep sampler goes on counting."""
        return self.steps.skipped if self.counts_skipped else 0

    def __iter__(self) -> Iterator[Step]:
        """The steps, one after the other; what is done in between belongs to the step."""
        for step in self.counted_steps()[self.skipped :]:
            self._recorder.step = step.number
            yield step

    def counted_steps(self) -> list[Step]:
        """The steps after those from which a multistep sampler goes on counting; which have the number of the first."""
        steps, skipped = self.steps, self.skipped
        timesteps, sigmas = steps.timesteps, steps.sigmas
        if skipped:
            timesteps = np.concatenate([steps.skipped_timesteps, timesteps])
            sigmas = np.concatenate([steps.skipped_sigmas, sigmas])
        last = len(timesteps) - 1
        levels = enumerate(zip(timesteps, sigmas[:-1], sigmas[1:], strict=True))
        return [
            Step(max(index - skipped, 0), float(now), float(after), float(timestep), index == last)
            for index, (timestep, now, after) in levels
        ]

    def begin_step(self, index: int) -> None:
        """For samplers that lay their own steps, or take some in another order."""
        self._recorder.step = index

    def denoise(self, latents: Vector, sigma: float, timestep: float | None = None) -> Vector:
        """The denoised latents: the network's estimate of `x0`."""
        return self._recorder.denoise(latents, sigma, timestep)

    def keep(self, vector: Vector) -> Vector:
        """The vector as one register."""
        return self._recorder.keep(vector)

    def noise(self) -> Vector:
        """White noise, times `s_noise`."""
        return self._recorder.noise() * self.options.s_noise

    def brownian(self, now: float, after: float) -> Vector:
        """The increment of a Brownian path between two sigmas, of variance 1, times `s_noise`."""
        return self._recorder.noise((now, after)) * self.options.s_noise

    def table(self, result: Vector) -> Table:
        """What was done."""
        return self._recorder.table(result, self.steps.start)

    def churned(self, latents: Vector, step: Step) -> tuple[Vector, float, float | None]:
        """Noise added before a step: the latents, their level, and the timestep (None where it is none of those laid).

        Karras et al. 2022, algorithm 2, lines 4 to 6.
        """
        o = self.options
        if o.s_churn == 0:
            return latents, step.now, step.timestep
        # Drawn in every step, so that the noise of a step does not depend on which steps get any (as in k-diffusion).
        fresh = self.noise()
        within = o.s_tmin <= step.now <= (math.inf if o.s_tmax is None else o.s_tmax)
        gamma = min(o.s_churn / len(self.steps.timesteps), math.sqrt(2) - 1) if within else 0.0
        if gamma == 0:
            return latents, step.now, step.timestep
        raised = step.now * (1 + gamma)
        return latents + fresh * math.sqrt(raised * raised - step.now * step.now), raised, None

    def ended(self, latents: Vector) -> Vector:
        """The result of a solver that diffusers writes for unit variance: what ends with noise is smaller."""
        return latents if self.steps.spacing == "k_diffusion" else latents * alpha(float(self.steps.sigmas[-1]))


def ancestral(now: float, after: float, eta: float) -> tuple[float, float]:
    """The level to step down to, and the noise to add there to come to `after`; k-diffusion, `get_ancestral_step`."""
    if eta == 0:
        return after, 0.0
    up = min(after, eta * math.sqrt(after * after * (now * now - after * after)) / now)
    return math.sqrt(max(after * after - up * up, 0.0)), up


def lagrange_integrals(nodes: Float64[np.ndarray, " n"], start: float, end: float) -> Float64[np.ndarray, " n"]:
    """The integrals from start to end of the polynomials that are 1 at one node and 0 at the others."""
    result = []
    for node in nodes:
        others = nodes[nodes != node]
        basis = np.array(elementary.polynomial_with_roots(others)) / np.prod(node - others)
        primitive = [0.0, *(basis / np.arange(1, len(basis) + 1))]
        until, before = (sum(c * elementary.power(at, n) for n, c in enumerate(primitive)) for at in (end, start))
        result.append(until - before)
    return np.array(result)


def alpha(sigma: float) -> float:
    """The share of `x0` in latents of unit variance."""
    return 1 / math.sqrt(1 + sigma * sigma)
