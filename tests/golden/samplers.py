"""The comparisons of samplers alone, with a formula in the place of the network; and what sdjax gives for them.

Recorded in samplers.npz by `tests.golden.sampler_reference`, which runs the samplers of diffusers, of k-diffusion and
of A1111, all in float64. So what is compared is the algorithm: a difference shows even where it is no more than one of
rounding a timestep.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from sdjax.diffusion.samplers import SAMPLERS, Options, config_for, fill_in, own_sampler, table_of
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.diffusion.schedules import SCHEDULES, default_schedule
from sdjax.diffusion.tableau import Table
from sdjax.diffusion.timestep_spacing import default_spacing, lay_steps
from tests.diffusion.on_host import run_on_host

FILE = Path(__file__).with_name("samplers.npz")
# In shares of the largest value. Both sides are float64.
TOLERANCE = 1e-9
# Where diffusers has a signal of exactly nothing at the first timestep, which sigmas can't say, and sdjax 2^-12, as
# diffusers' own Euler and DPM-Solver classes have.
ZERO_SNR_TOLERANCE = 2 * 2.0**-12
_WITHOUT_LEAST_SIGNAL = ("DDPMScheduler", "DDIMScheduler", "LCMScheduler", "TCDScheduler")
# Where the last step begins where it ends but for rounding, diffusers takes the root of that for noise.
STAYING_TOLERANCE = 1e-8
# Of each sigma: A1111's are float32.
SIGMA_TOLERANCE = 2e-7

# Of one image, channels second.
SHAPE = (1, 1, 2, 3)
LATENTS = np.linspace(-1.7, 1.9, 6).reshape(SHAPE)
IMAGE = np.linspace(0.8, -0.6, 6).reshape(SHAPE) ** 3
STEPS = (20, 7, 1)

SD1 = (("beta_start", 0.00085), ("beta_end", 0.012), ("beta_schedule", "scaled_linear"))
_ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
_SPACINGS = ("leading", "linspace", "trailing")

Fields = tuple[tuple[str, Any], ...]


class Case(NamedTuple):
    """One run of one sampler.

    config: the checkpoint's `scheduler_config.json`.
    sampler: by k-diffusion or A1111; None is diffusers' class that the config names.
    schedule: None is what the config says.
    strength: below 1 it begins with `IMAGE`, as diffusers' img2img pipelines do.
    """

    steps: int
    config: Fields
    sampler: str | None = None
    schedule: str | None = None
    options: Options = Options()
    strength: float = 1.0

    @property
    def tolerance(self) -> float:
        """How far sdjax may be off."""
        config = dict(self.config)
        if config.get("rescale_betas_zero_snr") and config["_class_name"] in _WITHOUT_LEAST_SIGNAL:
            return ZERO_SNR_TOLERANCE
        stays = config.get("final_sigmas_type") == "sigma_min" and config.get("use_karras_sigmas")
        return STAYING_TOLERANCE if stays and config["algorithm_type"].startswith("sde") else TOLERANCE

    @property
    def name(self) -> str:
        """Says all of it."""
        said = [*self.config[len(SD1) :], *zip(Options._fields, self.options, strict=True)]
        known = Options()._asdict()
        words = [
            f"{key}={value}"
            for key, value in said
            if key not in ("_class_name", "clip_sample") and known.get(key, ...) != value
        ]
        schedule = [self.schedule] if self.schedule else []
        share = [f"x {self.strength:g}"] if self.strength < 1 else []
        return " ".join([self.sampler or dict(self.config)["_class_name"], *words, *schedule, f"{self.steps}", *share])


# --- The formula ---


def network(scaled: Any, timestep: float, xp: ModuleType) -> Any:
    """What a network is to give for latents of unit variance: smooth, not linear, and feels the timestep's fraction."""
    return 0.8 * xp.sin(1.7 * scaled + 0.01 * timestep) + 0.3 * scaled


def white(index: int) -> np.ndarray:
    """The noise that is drawn as the `index`-th."""
    return np.random.RandomState(1000 + index).standard_normal(SHAPE)


def path(start: float, end: float) -> np.ndarray:
    """The noise between two sigmas, which tells them."""
    return np.sin(np.arange(6).reshape(SHAPE) + 3 * np.log(start) + 2 * np.log(end))


# --- The cases ---


def _of_class(name: str, variants: Iterable[dict[str, Any]], steps: Iterable[int] = STEPS) -> Iterator[Case]:
    """Every variant with every number of steps; what is no field of a config is an option of the sampler."""
    for variant, count in itertools.product(variants, steps):
        options = {key: value for key, value in variant.items() if key in ("eta",)}
        fields = {"clip_sample": False, **{key: value for key, value in variant.items() if key not in options}}
        yield Case(count, (*SD1, ("_class_name", name), *fields.items()), options=Options(**options))


def _each(**choices: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


_KINDS = ("epsilon", "v_prediction", "sample")
_LAID = [{}, *_each(timestep_spacing=_SPACINGS, steps_offset=(0, 1)), *_each(prediction_type=_KINDS[:2])]
_SAMPLE = {"prediction_type": "sample"}
_BOUNDED = {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def _sigmas(*flags: str, spacings: Iterable[str] = _SPACINGS) -> list[dict[str, Any]]:
    return [{flag: True, "timestep_spacing": spacing} for flag in flags for spacing in spacings]


def _diffusers() -> Iterator[Case]:
    yield from _of_class(
        "DDPMScheduler", [*_LAID, _SAMPLE, _ZERO_SNR, *_each(variance_type=("fixed_small", "fixed_large"))]
    )
    ends = _each(set_alpha_to_one=(True, False), steps_offset=(0, 1), eta=(0.0, 0.5, 1.0))
    yield from _of_class("DDIMScheduler", [*_LAID, _SAMPLE, *ends, _ZERO_SNR, {**_ZERO_SNR, "eta": 0.5}])
    pndm = [*_LAID, *_each(set_alpha_to_one=(True, False), steps_offset=(0, 1))]
    yield from _of_class("PNDMScheduler", [{**variant, "skip_prk_steps": True} for variant in pndm])
    yield from _of_class("PNDMScheduler", pndm, [20, 7, 4])
    for name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler"):
        yield from _of_class(name, [*_LAID, *_sigmas(*_SIGMAS), {"final_sigmas_type": "sigma_min"}])
    for name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"):
        yield from _of_class(name, [_SAMPLE])
    euler = [
        _BOUNDED,
        {"interpolation_type": "log_linear"},
        _ZERO_SNR,
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "linear", "trained_betas": tuple(np.linspace(0.001, 0.01, 1000))},
    ]
    yield from _of_class("EulerDiscreteScheduler", euler)
    yield from _of_class("EulerAncestralDiscreteScheduler", [*_LAID, _ZERO_SNR])
    yield from _of_class("KDPM2AncestralDiscreteScheduler", [*_LAID, *_sigmas(*_SIGMAS)])
    yield from _of_class("DPMSolverSDEScheduler", [*_LAID, *_sigmas(*_SIGMAS)])
    yield from _solvers()
    yield from _of_class("LCMScheduler", [*_each(prediction_type=_KINDS), _ZERO_SNR, {"original_inference_steps": 100}])
    yield from _of_class("LCMScheduler", [{}], [4])
    yield from _of_class(
        "TCDScheduler", [*_each(prediction_type=_KINDS, eta=(0.0, 0.3, 1.0)), {**_ZERO_SNR, "eta": 0.3}]
    )


def _solvers() -> Iterator[Case]:
    """The exponential integrators."""
    more = (*_SIGMAS, "use_lu_lambdas")
    yield from _of_class("DPMSolverMultistepScheduler", [*_LAID, _SAMPLE, *_sigmas(*more), _BOUNDED, _ZERO_SNR])
    ends = {"dpmsolver++": ("zero", "sigma_min"), "sde-dpmsolver++": ("zero", "sigma_min")}
    ends |= {"dpmsolver": ("sigma_min",), "sde-dpmsolver": ("sigma_min",)}
    for kind, final in ends.items():
        orders = (1, 2) if kind.startswith("sde") else (1, 2, 3)
        variants = [
            *_each(final_sigmas_type=final, solver_order=orders, solver_type=("midpoint", "heun")),
            *_each(final_sigmas_type=final, solver_order=orders, euler_at_final=(True,)),
            *_each(final_sigmas_type=final, solver_order=orders, lower_order_final=(False,)),
            *_each(final_sigmas_type=final, timestep_spacing=_SPACINGS, lambda_min_clipped=(-5.1,)),
            *_each(final_sigmas_type=final[-1:], use_karras_sigmas=(True,), prediction_type=_KINDS),
        ]
        steps = (20, 7) if kind.startswith("sde") else STEPS
        yield from _of_class("DPMSolverMultistepScheduler", [{"algorithm_type": kind, **v} for v in variants], steps)
    for kind, final in {"dpmsolver++": ("zero", "sigma_min"), "dpmsolver": ("sigma_min",)}.items():
        variants = [
            *_each(final_sigmas_type=final, solver_order=(1, 2, 3), solver_type=("midpoint", "heun")),
            *_each(final_sigmas_type=final, solver_order=(1, 2, 3), lower_order_final=(True,)),
            *_each(final_sigmas_type=final, prediction_type=_KINDS),
            *_each(final_sigmas_type=final, lambda_min_clipped=(-5.1,)),
            *({"final_sigmas_type": final[0], flag: True} for flag in _SIGMAS),
        ]
        yield from _of_class(
            "DPMSolverSinglestepScheduler", [{"algorithm_type": kind, **v} for v in variants], (20, 7, 6)
        )
    yield from _of_class(
        "DEISMultistepScheduler",
        [
            *_LAID,
            _SAMPLE,
            *_sigmas(*_SIGMAS),
            _BOUNDED,
            *_each(solver_order=(1, 2, 3), lower_order_final=(True, False)),
        ],
    )
    # To zero noise diffusers' other forms of it give NaN.
    low = {"final_sigmas_type": "sigma_min"}
    unipc = [
        *_LAID,
        _SAMPLE,
        *_sigmas(*_SIGMAS),
        _BOUNDED,
        *_each(solver_type=("bh2",), solver_order=(1, 2, 3)),
        *({**low, **v} for v in _each(solver_type=("bh1", "bh2"), solver_order=(1, 2, 3), predict_x0=(True, False))),
        *_each(final_sigmas_type=("sigma_min",), solver_order=(2, 3), lower_order_final=(True, False)),
        {"disable_corrector": (0, 1, 4), "solver_order": 3},
        _ZERO_SNR,
    ]
    yield from _of_class("UniPCMultistepScheduler", unipc)


# Samplers that k-diffusion has, and what they can be told.
_ETAS = [{}, {"eta": 0.5}, {"eta": 0.0}, {"eta": 1.0, "s_noise": 1.1}]
_CHURNS = [{}, {"s_churn": 5.0}, {"s_churn": 40.0, "s_tmin": 0.3, "s_tmax": 8.0, "s_noise": 1.007}]
K_DIFFUSION: dict[str, list[dict[str, Any]]] = {
    "euler": _CHURNS,
    "euler_ancestral": _ETAS,
    "heun": _CHURNS,
    "dpm_2": _CHURNS,
    "dpm_2_ancestral": _ETAS,
    "lms": [{}, *({"solver_order": order} for order in (1, 2, 3))],
    "dpm_fast": [{}, {"eta": 0.5}, {"eta": 1.0, "s_noise": 1.1}],
    "dpmpp_2s_ancestral": _ETAS,
    "dpmpp_sde": _ETAS,
    "dpmpp_2m": [{}],
    "dpmpp_2m_sde": _ETAS,
    "dpmpp_2m_sde_heun": _ETAS,
    "dpmpp_3m_sde": _ETAS,
}
K_SCHEDULES = ("uniform", "karras", "exponential", "polyexponential")


def _k_diffusion() -> Iterator[Case]:
    for sampler, choices in K_DIFFUSION.items():
        # Its SDE samplers of several steps fail at a single one.
        counts = STEPS[:2] if sampler.startswith(("dpmpp_2m_sde", "dpmpp_3m_sde")) else STEPS
        for steps, schedule in itertools.product(counts, K_SCHEDULES):
            yield Case(steps, SD1, sampler, schedule)
        for steps, options in itertools.product((20, 7, 8, 9), choices):
            yield Case(steps, SD1, sampler, "karras", Options(**options))
        for steps in (20, 7):
            yield Case(steps, (*SD1, ("prediction_type", "v_prediction")), sampler, "karras")


def _restart() -> Iterator[Case]:
    for steps, schedule in itertools.product((7, 20, 25, 40), ("uniform", "karras")):
        yield Case(steps, SD1, "restart", schedule)
    yield Case(20, SD1, "restart", "karras", Options(s_noise=1.1))


CASES = {case.name: case for case in itertools.chain(_diffusers(), _k_diffusion(), _restart())}

# A1111's names of schedules, under ours.
WEBUI_SCHEDULES = {
    "uniform": "Uniform",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
    "align_your_steps": "Align Your Steps",
    "kl_optimal": "KL Optimal",
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
}
# Of steps; 11 is what Align Your Steps was found for.
WEBUI_STEPS = (7, 11, 20)


# --- What sdjax gives ---


@functools.cache
def config_of(fields: Fields) -> SchedulerConfig:
    """The config as sdjax reads it."""
    return SchedulerConfig.from_json(dict(fields))


def sampler_of(case: Case) -> str:
    """The key of `SAMPLERS`."""
    config = config_of(case.config)
    name = case.sampler or own_sampler(dict(case.config)["_class_name"], config)
    assert name is not None, f"{case.name} is no sampler of ours"
    return name


def table(case: Case) -> Table:
    """Its table."""
    config, name = config_of(case.config), sampler_of(case)
    heeded = config_for(config, name, own=case.sampler is None)
    schedule = case.schedule or default_schedule(config)
    spacing = "k_diffusion" if case.sampler else default_spacing(config, SAMPLERS[name].rules, schedule)
    options = fill_in(heeded, name, case.options)
    return table_of(heeded, name, schedule, spacing, case.steps, options, case.strength)


def given(case: Case) -> np.ndarray:
    """The last latents."""
    config, written = config_of(case.config), table(case)

    def denoise(latents: np.ndarray, sigma: float, timestep: float) -> np.ndarray:
        output = network(latents / np.sqrt(sigma**2 + 1), timestep, np)
        if config.prediction_type == "epsilon":
            return latents - sigma * output
        if config.prediction_type == "v_prediction":
            return latents / (sigma**2 + 1) - output * sigma / np.sqrt(sigma**2 + 1)
        return output

    noise = [np.zeros(SHAPE)] * len(written.draws)
    # diffusers' DPMSolverMultistepScheduler draws white noise where k-diffusion has a path.
    follows_path = case.sampler or dict(case.config)["_class_name"] == "DPMSolverSDEScheduler"
    for index, place in enumerate(np.flatnonzero(written.draws)):
        span = written.span[place]
        noise[place] = path(*span) if written.brownian[place] and follows_path else white(index)
    image = IMAGE / written.start if case.strength < 1 else 0.0
    return run_on_host(written, denoise, LATENTS + image, noise)


def sigmas(schedule: str, steps: int) -> np.ndarray:
    """A schedule as A1111 lays it."""
    rules = SAMPLERS["euler"].rules
    return lay_steps(config_of(SD1), rules, schedule, "k_diffusion", steps).sigmas


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    """The references of cases by name, and of schedules by "sigmas NAME STEPS"."""
    with np.load(FILE) as arrays:
        cases = dict(zip(arrays["names"].tobytes().decode().split("\n"), arrays["values"], strict=True))
        return {**cases, **{name: arrays[name] for name in arrays.files if name.startswith("sigmas ")}}


def relative_error(found: np.ndarray, reference: np.ndarray) -> float:
    """The greatest difference, in shares of the greatest value."""
    return float(np.abs(found.ravel() - reference.ravel()).max() / np.abs(reference).max())


assert set(WEBUI_SCHEDULES) <= set(SCHEDULES)
