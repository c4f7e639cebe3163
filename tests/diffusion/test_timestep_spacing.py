import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion.samplers import SAMPLERS, Options, config_for, fill_in, table_of
from sdjax.diffusion.scheduler_config import SchedulerConfig, training_sigmas
from sdjax.diffusion.schedules import SCHEDULES
from sdjax.diffusion.timestep_spacing import SPACINGS, ScheduleError, StepRules, Steps, default_spacing, lay_steps
from tests.diffusion.scheduler_configs import STABLE_DIFFUSION, scheduler_settings

WHOLE = StepRules("leading", whole=True, unit_start=True, schedules=("uniform",))


def laid(sampler: str, schedule: str, count: int, spacing: str | None = None, **config: object) -> Steps:
    """Steps of one sampler, in its own spacing if none is named."""
    of_model = dataclasses.replace(STABLE_DIFFUSION, **config)
    rules = SAMPLERS[sampler].rules
    return lay_steps(of_model, rules, schedule, spacing or default_spacing(of_model, rules, schedule), count)


EVERY_SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS)
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES)


# --- Steps ---


@pytest.mark.parametrize(
    ("spacing", "offset", "timesteps"),
    [
        ("leading", 1, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        ("leading", 0, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("linspace", 0, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("trailing", 0, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
    ],
)
def test_ten_steps_are_laid_as_in_the_table_of_lin_et_al(spacing, offset, timesteps):
    # Lin et al. 2023, table 2, which counts timesteps from 1.
    config = dataclasses.replace(STABLE_DIFFUSION, steps_offset=offset)
    steps = lay_steps(config, WHOLE, "uniform", spacing, 10)
    assert steps.timesteps.tolist() == timesteps
    np.testing.assert_allclose(steps.sigmas[:-1], training_sigmas(config)[timesteps], rtol=1e-12)


def test_linspace_without_rounding_divides_the_range_evenly():
    np.testing.assert_allclose(laid("euler", "uniform", 7).timesteps, 166.5 * np.arange(6, -1, -1))


def test_dpm_solver_leaves_out_the_point_next_to_zero_noise():
    steps = laid("dpmpp_2m", "uniform", 9)
    assert steps.timesteps.tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111]
    assert steps.sigmas[-1] == 0


def test_the_spacing_is_the_checkpoints_or_else_the_samplers_and_a1111s_where_diffusers_has_no_such_schedule():
    config = dataclasses.replace(STABLE_DIFFUSION, timestep_spacing="trailing")
    assert default_spacing(config, WHOLE, "uniform") == "trailing"
    assert default_spacing(STABLE_DIFFUSION, WHOLE, "uniform") == "leading"
    assert default_spacing(config, WHOLE, "karras") == "k_diffusion"
    assert default_spacing(config, SAMPLERS["euler"].rules, "karras") == "trailing"
    assert default_spacing(config, SAMPLERS["euler"].rules, "align_your_steps") == "k_diffusion"
    assert default_spacing(config, SAMPLERS["dpmpp_2s_ancestral"].rules, "uniform") == "k_diffusion"


def test_karras_noise_is_even_in_its_seventh_root_between_the_ends_of_the_steps():
    # Karras et al. 2022, equation 5.
    uniform, karras = (laid("euler", schedule, 12) for schedule in ("uniform", "karras"))
    np.testing.assert_allclose(karras.sigmas[[0, -2, -1]], uniform.sigmas[[0, -2, -1]], rtol=1e-12)
    np.testing.assert_allclose(np.diff(karras.sigmas[:-1] ** (1 / 7), n=2), 0, atol=1e-12)


def test_karras_noise_spans_the_whole_training_range_for_dpm_solver():
    steps = laid("dpmpp_2m", "karras", 5)
    np.testing.assert_allclose(steps.sigmas[[0, -2]], training_sigmas(STABLE_DIFFUSION)[[-1, 0]], rtol=1e-12)
    assert steps.timesteps[[0, -1]].tolist() == [999, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timesteps_say_the_noise_that_is_there(schedule):
    steps = laid("euler", schedule, 20)
    logs = np.interp(steps.timesteps, np.arange(1000), np.log(training_sigmas(STABLE_DIFFUSION)))
    # In diffusers' spacing timesteps between two of the model's have a mean of their sigmas; Align Your Steps ends
    # below the model's lowest level.
    np.testing.assert_allclose(np.exp(logs), steps.sigmas[:-1], rtol=1e-3 if schedule == "uniform" else 6e-3)


def test_the_first_latents_have_unit_variance_for_the_network_where_the_sampler_wants_it():
    unit = laid("ddim", "uniform", 10)
    assert unit.start == pytest.approx(math.sqrt(1 + unit.sigmas[0] ** 2))
    plain = laid("euler", "uniform", 10)
    assert plain.start == plain.sigmas[0]


def test_the_last_step_can_end_at_the_least_noise_instead_of_none():
    least = training_sigmas(STABLE_DIFFUSION)[0]
    assert laid("dpmpp_2m", "uniform", 10, final_sigmas_type="sigma_min").sigmas[-1] == least
    assert laid("dpmpp_2m", "uniform", 10).sigmas[-1] == 0
    assert laid("heun", "uniform", 10, final_sigmas_type="sigma_min").sigmas[-1] == 0
    # Where the last step is there already, it stays.
    np.testing.assert_allclose(laid("euler", "uniform", 10, final_sigmas_type="sigma_min").sigmas[-2:], least)


def test_dpm_2_leaves_out_the_last_but_one_sigma_as_in_a1111():
    plain, discarding = laid("euler", "karras", 11, "k_diffusion"), laid("dpm_2", "karras", 10, "k_diffusion")
    np.testing.assert_array_equal(discarding.sigmas, np.delete(plain.sigmas, -2))


# --- Any number of steps ---


@EVERY_SAMPLER
@settings(deadline=None, max_examples=30)
@given(
    schedule=st.sampled_from(list(SCHEDULES)),
    spacing=st.sampled_from(SPACINGS),
    options=scheduler_settings,
    offset=st.integers(0, 1),
    count=st.integers(1, 40) | st.integers(1, 1200),
)
def test_any_number_of_steps_goes_down_by_finite_weights_or_is_refused(
    sampler, schedule, spacing, options, offset, count
):
    config = config_for(SchedulerConfig(**options, steps_offset=offset), sampler, own=False)
    if schedule == "beta":  # of whose quantiles a hundred take a second
        count = min(count, 60)
    try:
        steps = lay_steps(config, SAMPLERS[sampler].rules, schedule, spacing, count)
        # Of many steps it takes long.
        few = min(count, 40)
        table = table_of(config, sampler, schedule, spacing, few, fill_in(config, sampler, Options()))
    except ScheduleError:
        return
    assert len(steps.sigmas) == len(steps.timesteps) + 1
    assert (np.diff(steps.sigmas[:-1]) < 0).all() and 0 <= steps.sigmas[-1] <= steps.sigmas[-2]
    assert (np.diff(steps.timesteps) <= 0).all()
    assert steps.timesteps[-1] >= 0 and steps.timesteps[0] < config.num_train_timesteps
    for column in table:
        assert np.isfinite(column).all()


@pytest.mark.parametrize("count", [1, 2, 15, 20, 25, 50, 100])
@pytest.mark.parametrize("schedule", sorted(set(SCHEDULES) - {"ddim_uniform"}))
@EVERY_SAMPLER
def test_usual_numbers_of_steps_are_given_as_asked(sampler, schedule, count):
    if SAMPLERS[sampler].rules.timesteps and schedule == "uniform" and count > 50:
        with pytest.raises(ScheduleError, match="steps = 100 is not within 1 to 50, the steps of the distilled model"):
            laid(sampler, schedule, count)
        return
    assert len(laid(sampler, schedule, count).timesteps) == count


@pytest.mark.parametrize(("count", "taken"), [(20, 20), (15, 16), (100, 100)])
def test_the_ddim_schedule_takes_more_steps_where_they_do_not_divide_the_timesteps(count, taken):
    # As A1111's does, whose DPM2 asks for one more of it and so may get several.
    assert len(laid("euler", "ddim_uniform", count).timesteps) == taken


@pytest.mark.parametrize("count", [-1, 0, 1001])
def test_a_number_of_steps_that_the_model_has_not_is_refused(count):
    with pytest.raises(ScheduleError, match=f"steps = {count} is not within 1 to 1000"):
        lay_steps(STABLE_DIFFUSION, WHOLE, "uniform", "leading", count)


@pytest.mark.parametrize(("sampler", "spacing", "count"), [("dpmpp_2m", "leading", 1000), ("euler", "trailing", 769)])
def test_so_many_steps_that_two_fall_on_one_timestep_are_refused(sampler, spacing, count):
    with pytest.raises(ScheduleError, match=f"steps = {count} is too many for the schedule uniform in the {spacing}"):
        laid(sampler, "uniform", count, spacing)


@pytest.mark.parametrize(
    ("sampler", "schedule", "spacing", "message"),
    [
        ("lcm", "uniform", "leading", "timestep_spacing = leading: this sampler has trailing, k_diffusion"),
        ("euler", "simple", "linspace", "schedule = simple is not one of those that diffusers lays for this sampler"),
        ("ddim", "karras", "leading", "leave timestep_spacing out or set it to k_diffusion"),
    ],
)
def test_a_spacing_or_schedule_that_a_sampler_has_not_is_refused(sampler, schedule, spacing, message):
    with pytest.raises(ScheduleError, match=message):
        laid(sampler, schedule, 10, spacing)
