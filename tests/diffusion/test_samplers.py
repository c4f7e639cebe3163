"""Every sampler against its reference, against problems with a known solution, against its kin, and against its page.

The table of docs/samplers.md is read here: what it says of names, orders of accuracy, costs and options is tested.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from sdjax.diffusion.samplers import (
    MULTISTEP,
    MULTISTEP_STARTS,
    SAMPLERS,
    Options,
    config_for,
    fill_in,
    own_sampler,
    sampler_named,
    schedule_named,
    table_of,
)
from sdjax.diffusion.samplers import names as vocabulary
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.diffusion.schedules import SCHEDULES, default_schedule
from sdjax.diffusion.tableau import Table
from sdjax.diffusion.timestep_spacing import ScheduleError
from tests.diffusion import exact
from tests.diffusion.on_host import run_on_host
from tests.golden import samplers as golden
from tests.golden import strengths

# --- What the page says ---

PAGE = Path(__file__).parents[2] / "docs" / "samplers.md"


def tables_of_page() -> list[list[dict[str, str]]]:
    """Each table as rows by the names of columns."""
    found: list[list[dict[str, str]]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", PAGE.read_text(), re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


_FIELDS, SAMPLERS_TABLE, ORDERS_TABLE, SCHEDULES_TABLE = tables_of_page()[:4]
PAGE_ROWS = {row["sampler"].strip("`"): row for row in SAMPLERS_TABLE}
# Of convergence, by sampler and `solver_order`; None is the sampler's default.
ORDERS = {(name, None): row["order"] for name, row in PAGE_ROWS.items()} | {
    (row["sampler"].strip("`"), int(column)): row[column] for row in ORDERS_TABLE for column in "1234" if row[column]
}
WITH_NOISE = {name: row["with noise"] for name, row in PAGE_ROWS.items()}
NONE = "-"


def laid(name: str, count: int, options: Options = exact.DEFAULTS, schedule: str = "uniform") -> Table:
    """A table as A1111 and ComfyUI lay it."""
    config = config_for(exact.CONFIG, name, own=False)
    return table_of(config, name, schedule, "k_diffusion", count, fill_in(config, name, options))


def without_noise(name: str) -> Options:
    return Options(eta=0.0 if SAMPLERS[name].eta is not None else None)


def test_the_page_has_a_row_for_every_sampler_and_for_every_schedule():
    assert list(PAGE_ROWS) == list(SAMPLERS)
    assert [row["schedule"].strip("`") for row in SCHEDULES_TABLE] == list(SCHEDULES)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_page_says_each_name_in_each_vocabulary(name):
    row = PAGE_ROWS[name]
    for column in ("A1111", "ComfyUI"):
        for said in re.findall(r"`(.+?)`", row[column]):
            assert sampler_named(said).sampler == name
    assert row["A1111"] in (NONE, f"`{vocabulary.A1111_SAMPLERS[name]}`")
    classes = re.findall(r"`(\w+Scheduler)`", row["diffusers"])
    config = dict(re.findall(r"`(\w+): ([\w+-]+)`", row["diffusers"]))
    config = {key: {"true": True, "false": False}.get(value, value) for key, value in config.items()}
    if "dpmsolver" in config.get("algorithm_type", "") and "++" not in row["diffusers"]:
        config["final_sigmas_type"] = "sigma_min"
    for said in classes:
        assert own_sampler(said, SchedulerConfig.from_json({"_class_name": said, **config})) == name


@pytest.mark.parametrize("row", SCHEDULES_TABLE, ids=lambda row: row["schedule"].strip("`"))
def test_the_page_says_what_each_schedule_is_called(row):
    name = row["schedule"].strip("`")
    assert row["A1111"] in (NONE, f"`{vocabulary.A1111_SCHEDULES[name]}`")
    for flag in re.findall(r"`(.+?)`", row["diffusers"]):
        assert schedule_named(flag) == default_schedule(SchedulerConfig.from_json({flag: True})) == name


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_page_says_what_each_sampler_costs_and_draws_and_takes(name):
    row, sampler = PAGE_ROWS[name], SAMPLERS[name]
    for count in (7, 20, 41):
        assert laid(name, count).evaluations == eval(row["evaluations"].replace("2n", "2 * n"), {"n": count})
    taken = [f"`eta` ({sampler.eta:g})"] if sampler.eta is not None else []
    taken += ["`s_churn`"] if sampler.churns else []
    taken += [f"`solver_order` ({', '.join(map(str, sampler.orders))})"] if sampler.orders else []
    assert row["options"] == (", ".join(taken) or NONE)
    drawing = [Options(), *([Options(eta=1.0)] if sampler.eta is not None else [])]
    drawing += [Options(s_churn=5.0)] if sampler.churns else []
    table = laid(name, 20, drawing[-1])
    kind = (NONE, "white", "path")[int(table.draws.any()) + int(table.brownian.any())]
    asked = "" if kind == NONE or laid(name, 20).draws.any() else " if asked"
    assert row["noise"] == kind + asked


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_page_says_what_each_sampler_is_compared_with(name):
    sides = {golden.sampler_of(case): set() for case in golden.CASES.values()}
    for case in golden.CASES.values():
        side = "A1111" if case.sampler == "restart" else "k-diffusion" if case.sampler else "diffusers"
        sides[golden.sampler_of(case)].add(side)
    assert set(PAGE_ROWS[name]["compared with"].split(", ")) == sides[name]


# --- References ---

KINDS = sorted({name.split(" ", 1)[0] for name in golden.CASES})


@pytest.mark.parametrize("kind", KINDS)
def test_samplers_give_what_the_reference_gave(kind):
    cases = {name: case for name, case in golden.CASES.items() if name.split(" ", 1)[0] == kind}
    recorded = golden.recorded()
    errors = {name: golden.relative_error(golden.given(case), recorded[name]) for name, case in cases.items()}
    assert {name: error for name, error in errors.items() if not error <= cases[name].tolerance} == {}


@pytest.mark.parametrize("kind", sorted({name.split(" ", 1)[0] for name in strengths.CASES}))
def test_samplers_that_begin_with_an_image_give_what_diffusers_gave(kind):
    cases = {name: case for name, case in strengths.CASES.items() if name.split(" ", 1)[0] == kind}
    recorded = strengths.recorded()
    errors = {name: golden.relative_error(golden.given(case), recorded[name]) for name, case in cases.items()}
    assert {name: error for name, error in errors.items() if not error <= strengths.tolerance(cases[name])} == {}


def test_every_sampler_is_compared_with_a_reference():
    assert {golden.sampler_of(case) for case in golden.CASES.values()} == set(SAMPLERS)


# --- Accuracy ---

# So many that the order has set in: UniPC with fewer still gains from its corrector.
_COUNTS = [126, 252]


@pytest.mark.parametrize(("name", "solver_order"), [key for key, said in ORDERS.items() if said != NONE])
def test_the_error_falls_with_the_order_that_the_page_says(name, solver_order, record_property):
    # A number of evaluations that DPM-Solver-fast ends by a step of second order, not of first.
    counts = [count - 1 for count in _COUNTS] if name == "dpm_fast" else _COUNTS
    options = without_noise(name)._replace(solver_order=solver_order)
    errors = [exact.error(name, count, options) for count in counts]
    measured = exact.order(counts, errors)
    record_property("order", measured)
    print(f"{name} {solver_order}: order {measured:.2f}, errors {errors}")
    assert measured == pytest.approx(float(ORDERS[name, solver_order]), abs=0.25)


@pytest.mark.parametrize("name", [name for name, said in WITH_NOISE.items() if said != NONE])
def test_the_distribution_nears_that_of_data_with_the_order_that_the_page_says(name, record_property):
    counts = [120, 240]
    errors = [exact.error_of_distribution(name, count) for count in counts]
    measured = exact.order(counts, errors)
    record_property("order", measured)
    print(f"{name}: order {measured:.2f}, errors {errors}")
    if WITH_NOISE[name] == "none":
        assert measured < 0.5
    else:
        assert measured == pytest.approx(float(WITH_NOISE[name]), abs=0.3)


def test_samplers_without_an_order_are_those_that_always_draw_noise():
    noisy = {name for name in SAMPLERS if laid(name, 19, without_noise(name)).draws.any()}
    assert {name for name, row in PAGE_ROWS.items() if row["order"] == NONE} == noisy | {"restart"}
    assert {name for name, said in WITH_NOISE.items() if said != NONE} == {
        name for name in SAMPLERS if laid(name, 19).draws.any()
    }


@pytest.mark.parametrize("options", [{}, {"solver_order": 3}, {"solver_order": 1}], ids=["2", "3", "1"])
def test_unipc_is_of_one_order_more_if_its_last_step_is_not_of_the_first(options):
    counts = [64, 128]
    errors = [exact.error("uni_pc", count, Options(**options), lower_order_final=False) for count in counts]
    assert exact.order(counts, errors) == pytest.approx(options.get("solver_order", 2) + 1, abs=0.2)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"lcm", "tcd"}))
def test_samples_have_the_mean_and_deviation_of_the_data(name):
    mean, deviation = exact.moments(laid(name, 100, schedule="karras"), 0.7, 0.5, (0.0, 1.0))
    print(f"{name}: mean {mean:.4f}, deviation {deviation:.4f}")
    # The start has none of the data's mean; samplers of first order are a few percent off the deviation.
    assert mean == pytest.approx(0.7, abs=0.03)
    assert deviation == pytest.approx(0.5, rel=0.05 if PAGE_ROWS[name]["order"] in ("1", NONE) else 0.01)


# --- Kin ---


def same(one: Table, other: Table) -> None:
    starts = np.linspace(-2, 2, 9)
    noises = np.random.default_rng(0).standard_normal((max(len(one.draws), len(other.draws)), 9))
    results = [run_on_host(table, exact.of_mixture, starts, noises) for table in (one, other)]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kin"),
    [
        ("euler_ancestral", "euler"),
        ("dpmpp_2m_sde", "dpmpp_2m"),
        ("dpmpp_2s_ancestral", "dpmpp_sde"),
        ("dpm_2_ancestral", "dpm_2"),
        ("ddim", "euler"),
    ],
)
@pytest.mark.parametrize("schedule", ["uniform", "karras"])
def test_without_noise_a_stochastic_sampler_is_its_deterministic_kin(name, kin, schedule):
    same(laid(name, 20, Options(eta=0.0), schedule), laid(kin, 20, without_noise(kin), schedule))


@pytest.mark.parametrize(("name", "order"), [("dpmpp_2m_sde_heun", 2), ("dpmpp_3m_sde", 3)])
def test_without_noise_heuns_sde_samplers_are_dpmpp_of_the_solver_type_heun(name, order):
    config = dataclasses.replace(exact.CONFIG, solver_type="heun")
    options = fill_in(config, "dpmpp_2m", Options(solver_order=order))
    same(laid(name, 20, Options(eta=0.0), "karras"), table_of(config, "dpmpp_2m", "karras", "k_diffusion", 20, options))


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpm_solver_2m", "dpmpp_2s", "dpm_solver_2s", "deis", "lms"])
def test_solvers_of_first_order_are_euler(name):
    same(laid(name, 20, Options(solver_order=1)), laid("euler", 20))


def test_ddim_with_all_of_the_noise_is_ddpm():
    same(laid("ddim", 20, Options(eta=1.0)), laid("ddpm", 20))


def test_restart_is_heun_if_steps_are_few():
    same(laid("restart", 19), laid("heun", 19))
    assert not laid("restart", 19).draws.any() and laid("restart", 20).draws.any()


def test_singlestep_is_2s_without_noise_where_levels_are_geometric():
    options = Options(eta=0.0)
    # Two evaluations of the one are two steps, of the other one step with its middle.
    one, other = exact.geometric("dpmpp_2s", 40)[0], exact.geometric("dpmpp_2s_ancestral", 20, options)[0]
    same(one, other)


# --- One step ---

# One ends at the model's lowest level, one takes four steps at least.
_TO_NOTHING = sorted(set(SAMPLERS) - {"tcd", "dpm_fast", "pndm"})


@pytest.mark.parametrize("name", _TO_NOTHING)
def test_a_single_step_to_no_noise_gives_what_the_denoiser_finds(name):
    table = laid(name, 1)
    starts = np.linspace(-2, 2, 9)
    found = run_on_host(table, exact.of_mixture, starts, np.zeros((len(table.draws), 9)))
    wanted = exact.of_mixture(starts * exact.LEVELS[-1], float(exact.LEVELS[-1]), 0.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)


def test_pndm_asks_for_the_steps_that_it_needs():
    with pytest.raises(ScheduleError, match="steps = 3: pndm takes 4 at least; plms takes any number"):
        laid("pndm", 3)


# Of an image at half of 20 steps.
BEGIN_WITH_A_IMAGE = [("plms", "leading"), ("pndm", "leading"), ("lms", "linspace")]


def of_image(name: str, spacing: str, start: str) -> Table:
    config = config_for(exact.CONFIG, name, own=False)
    return table_of(config, name, "uniform", spacing, 20, fill_in(config, name, Options(multistep_start=start)), 0.5)


def error_of_image(name: str, spacing: str, start: str) -> float:
    table = of_image(name, spacing, start)
    noisy = np.array([-1.3, -0.5, 0.2, 0.9]) * np.hypot(table.start, 1)
    found = run_on_host(table, exact.of_mixture, noisy / table.start)
    return float(np.abs(found - [exact.flow(value, table.start, 1e-3) for value in noisy]).max())


@pytest.mark.parametrize(("name", "spacing"), BEGIN_WITH_A_IMAGE)
def test_a_multistep_sampler_of_an_image_is_nearer_to_the_exact_flow_if_it_begins_afresh(name, spacing):
    assert error_of_image(name, spacing, "k_diffusion") < 0.8 * error_of_image(name, spacing, "diffusers")


@pytest.mark.parametrize("name", [name for name, _ in BEGIN_WITH_A_IMAGE])
def test_in_k_diffusions_spacing_a_multistep_sampler_begins_afresh_in_any_case(name):
    tables = [of_image(name, "k_diffusion", start) for start in MULTISTEP_STARTS]
    np.testing.assert_array_equal(*(table.weights for table in tables))


@pytest.mark.parametrize("start", MULTISTEP_STARTS)
@pytest.mark.parametrize(("name", "spacing"), BEGIN_WITH_A_IMAGE)
def test_of_an_image_as_many_steps_are_counted_as_its_strength_takes(name, spacing, start):
    steps = of_image(name, spacing, start).step
    assert steps[0] == 0 and steps[-1] == 9 and (np.diff(steps) >= 0).all()


def test_samplers_that_heed_how_they_begin_are_the_multistep_ones_that_count_their_steps():
    def differ(name: str, spacing: str) -> bool:
        first, second = (of_image(name, spacing, start).weights for start in MULTISTEP_STARTS)
        return not np.array_equal(first, second)

    laid_by_diffusers = {name: row.rules.spacings[0] for name, row in SAMPLERS.items() if row.rules.spacings}
    assert {name for name, spacing in laid_by_diffusers.items() if differ(name, spacing)} == set(MULTISTEP)


# --- Names and options ---


@pytest.mark.parametrize(
    ("said", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("dpm++ 2m sde exponential", "dpmpp_2m_sde", "exponential"),
        ("Euler a", "euler_ancestral", None),
        ("k_dpm_2_a_ka", "dpm_2_ancestral", "karras"),
        ("EulerDiscrete", "euler", None),
        ("EulerDiscreteScheduler", "euler", None),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde", None),
        ("euler-ancestral", "euler_ancestral", None),
    ],
)
def test_names_of_other_tools_are_known(said, sampler, schedule):
    assert sampler_named(said) == (sampler, schedule)


def test_every_sampler_and_schedule_has_one_label_and_is_found_by_it():
    assert set(vocabulary.A1111_SAMPLERS) == set(SAMPLERS) and set(vocabulary.A1111_SCHEDULES) == set(SCHEDULES)
    assert {sampler_named(label).sampler for label in vocabulary.A1111_SAMPLERS.values()} == set(SAMPLERS)
    assert {schedule_named(label) for label in vocabulary.A1111_SCHEDULES.values()} == set(SCHEDULES)
    assert {sampler_named(name).sampler for name in SAMPLERS} == set(SAMPLERS)
    assert sampler_named("no such sampler") is None and schedule_named("no such schedule") is None


def test_every_class_of_diffusers_leads_to_a_sampler():
    assert set(vocabulary.CLASSES.values()) <= set(SAMPLERS)
    assert own_sampler("KarrasVeScheduler", exact.CONFIG) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("euler", Options(eta=0.5), "eta = 0.5: euler has none; leave it out, or take one of ddim, tcd"),
        ("ddim", Options(s_churn=1.0), "s_churn = 1.0: ddim has none; leave it out, or take one of euler, heun, dpm_2"),
        ("euler", Options(solver_order=2), "solver_order = 2: euler has none"),
        ("dpmpp_2m", Options(solver_order=4), "solver_order = 4: dpmpp_2m has 1, 2, 3"),
    ],
)
def test_an_option_that_a_sampler_has_not_is_refused(name, options, message):
    with pytest.raises(ScheduleError, match=re.escape(message)):
        fill_in(exact.CONFIG, name, options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_schedule_gives_a_table_of_numbers_or_says_why_not(name):
    config = config_for(SchedulerConfig(beta_schedule="scaled_linear"), name, own=False)
    laid = 0
    for schedule in SCHEDULES:
        for steps in (1, 2, 3, 4, 8, 20):
            try:
                table = table_of(config, name, schedule, "k_diffusion", steps, fill_in(config, name, Options()))
            except ScheduleError as error:
                assert str(error)
                continue
            laid += 1
            assert all(np.isfinite(values).all() for values in (table.weights, table.sigma, table.timestep))
    assert laid > len(SCHEDULES)
