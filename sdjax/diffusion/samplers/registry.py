"""The registry of samplers: one row each.

To add one: a function that takes a `SamplerRun` and gives the last latents, and a row in `SAMPLERS`; or the row as an
entry point of another package (`sdjax.extensions`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from sdjax import extensions
from sdjax.diffusion.samplers import ddim, dpm_solver, euler
from sdjax.diffusion.samplers.sampler_run import Options, SamplerRun
from sdjax.diffusion.scheduler_config import SchedulerConfig, training_sigmas
from sdjax.diffusion.tableau import Table, Vector, still
from sdjax.diffusion.timestep_spacing import ScheduleError, Spacing, StepRules, lay_steps, steps_of_strength


class Sampler(NamedTuple):
    """A sampling algorithm.

    write: does it once with symbols.
    rules: how diffusers' class lays its steps, or k-diffusion its own.
    eta: the default share of fresh noise; None if there is none to be set.
    churns: whether noise can be added before steps (`s_churn`).
    orders: those of `solver_order` that it has, the default first.
    config: fields of the scheduler's config that are set by the sampler's name.
    """

    write: Callable[[SamplerRun], Vector]
    rules: StepRules
    eta: float | None = None
    churns: bool = False
    orders: tuple[int, ...] = ()
    config: tuple[tuple[str, Any], ...] = ()


_EULER = StepRules("linspace", whole=False)
_KARRAS = _EULER._replace(final="zero")
_ANCESTRAL = _KARRAS._replace(schedules=("uniform",))
_DPM_2 = _KARRAS._replace(rounds_karras=True, discards_penultimate=True)
_UNIT = StepRules("leading", whole=True, unit_start=True, schedules=("uniform",), final="zero")
_SOLVER = StepRules(
    "linspace",
    whole=True,
    drops_last=True,
    range="training",
    unit_start=True,
    schedules=("uniform", "karras", "exponential", "beta", "lu"),
    rounds_karras=True,
)
_NO_LU = _SOLVER._replace(schedules=("uniform", "karras", "exponential", "beta"))
_SINGLE = _NO_LU._replace(spacings=("linspace",))
_DISTILLED = _UNIT._replace(spacing="trailing", spacings=("trailing",), timesteps=ddim.distilled_timesteps)
_FREE = StepRules("k_diffusion", whole=False, schedules=(), spacings=())

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(ddim.ddpm, _UNIT),
    "ddim": Sampler(ddim.ddim, _UNIT, eta=0.0),
    "pndm": Sampler(ddim.pndm, _UNIT),
    "plms": Sampler(ddim.plms, _UNIT),
    "lcm": Sampler(ddim.lcm, _DISTILLED),
    "tcd": Sampler(ddim.tcd, _DISTILLED, eta=0.3),
    "euler": Sampler(euler.euler, _EULER, churns=True),
    "euler_ancestral": Sampler(euler.euler_ancestral, _ANCESTRAL, eta=1.0),
    "heun": Sampler(euler.heun, _KARRAS, churns=True),
    "dpm_2": Sampler(euler.dpm_2, _DPM_2, churns=True),
    "dpm_2_ancestral": Sampler(euler.dpm_2_ancestral, _DPM_2, eta=1.0),
    "lms": Sampler(euler.lms, _KARRAS, orders=(4, 1, 2, 3)),
    "restart": Sampler(euler.restart, _FREE),
    "dpm_fast": Sampler(dpm_solver.dpm_fast, _FREE, eta=0.0),
    "dpm_solver_2m": Sampler(dpm_solver.dpm_multistep, _SOLVER._replace(final="lowest"), orders=(2, 1, 3)),
    "dpm_solver_2m_sde": Sampler(dpm_solver.dpm_2m_sde, _SOLVER._replace(final="lowest"), orders=(2, 1)),
    "dpm_solver_2s": Sampler(dpm_solver.dpm_singlestep, _SINGLE._replace(final="lowest"), orders=(2, 1, 3)),
    "dpmpp_2s": Sampler(dpm_solver.dpmpp_singlestep, _SINGLE, orders=(2, 1, 3)),
    "dpmpp_2s_ancestral": Sampler(dpm_solver.dpmpp_2s_ancestral, _FREE, eta=1.0),
    "dpmpp_sde": Sampler(dpm_solver.dpmpp_sde, _KARRAS, eta=1.0),
    "dpmpp_2m": Sampler(dpm_solver.dpmpp_multistep, _SOLVER, orders=(2, 1, 3)),
    "dpmpp_2m_sde": Sampler(dpm_solver.dpmpp_2m_sde, _SOLVER, eta=1.0, orders=(2, 1)),
    "dpmpp_2m_sde_heun": Sampler(
        dpm_solver.dpmpp_2m_sde, _SOLVER, eta=1.0, orders=(2, 1), config=(("solver_type", "heun"),)
    ),
    "dpmpp_3m_sde": Sampler(dpm_solver.dpmpp_3m_sde, _FREE, eta=1.0),
    "deis": Sampler(dpm_solver.deis, _NO_LU._replace(final="again"), orders=(2, 1, 3)),
    "uni_pc": Sampler(dpm_solver.uni_pc, _NO_LU, orders=(2, 1, 3)),
    "uni_pc_bh2": Sampler(dpm_solver.uni_pc_bh2, _NO_LU, orders=(2, 1, 3)),
}


def sampler_row(name: str) -> Sampler:
    """The row of a sampler, of this package or another.

    Raises:
      KeyError: if there is none.
      ExtensionError: if it is another package's and can't be used.
    """
    return extensions.row_named(name, SAMPLERS, extensions.SAMPLERS, Sampler)


# Those that begin img2img as `Options.multistep_start` says.
MULTISTEP = ("lms", "plms", "pndm")

# Fields of a scheduler's config that only the checkpoint's own sampler heeds.
_OWN: dict[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(SchedulerConfig)
    if field.name
    in (
        "algorithm_type", "disable_corrector", "euler_at_final", "interpolation_type", "lambda_min_clipped",
        "lower_order_final", "predict_x0", "solver_order", "solver_type", "variance_type",
    )
}  # fmt: skip


def config_for(config: SchedulerConfig, sampler: str, own: bool) -> SchedulerConfig:
    """The scheduler's config as one sampler heeds it.

    Args:
      config: the checkpoint's.
      sampler: of `sampler_row`.
      own: whether this is the sampler that the checkpoint names; the options of another class say nothing.
    """
    kept = config if own else dataclasses.replace(config, **_OWN)
    return dataclasses.replace(kept, **dict(sampler_row(sampler).config))


def fill_in(config: SchedulerConfig, sampler: str, options: Options) -> Options:
    """The options with the sampler's own defaults.

    Raises:
      ScheduleError: for an option that the sampler does not have; it would be ignored.
    """
    row = sampler_row(sampler)
    if row.eta is None and options.eta is not None:
        takers = ", ".join(name for name, other in SAMPLERS.items() if other.eta is not None)
        raise ScheduleError(f"eta = {options.eta}: {sampler} has none; leave it out, or take one of {takers}")
    if not row.churns and options.s_churn:
        takers = ", ".join(name for name, other in SAMPLERS.items() if other.churns)
        raise ScheduleError(f"s_churn = {options.s_churn}: {sampler} has none; leave it out, or take one of {takers}")
    order = options.solver_order
    if order is not None and order not in row.orders:
        known = ", ".join(map(str, sorted(row.orders))) or "none"
        raise ScheduleError(f"solver_order = {order}: {sampler} has {known}")
    if order is None and row.orders:
        order = config.solver_order if config.solver_order in row.orders else row.orders[0]
    return options._replace(eta=row.eta if options.eta is None else options.eta, solver_order=order)


@functools.lru_cache(maxsize=1024)
def table_of(
    config: SchedulerConfig,
    sampler: str,
    schedule: str,
    spacing: Spacing,
    count: int,
    options: Options,
    strength: float = 1.0,
) -> Table:
    """The table of a sampler; its arrays are shared and not to be written to.

    Args:
      config: from `config_for`.
      sampler: of `sampler_row`.
      schedule, spacing, count: as for `lay_steps`.
      options: from `fill_in`.
      strength: of img2img; see `steps_of_strength`. At 1 it is all steps, from noise alone.

    Raises:
      ScheduleError: if it can't be laid.
    """
    row = sampler_row(sampler)
    steps = steps_of_strength(lay_steps(config, row.rules, schedule, spacing, count), strength)
    if not len(steps.timesteps):
        return still(float(training_sigmas(config)[0]))
    run = SamplerRun(config, steps, options)
    return run.table(row.write(run))
