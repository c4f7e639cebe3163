import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.schedule import (
    SCHEDULES,
    ScheduleError,
    SchedulerConfig,
    StepRules,
    alphas_cumprod,
    default_schedule,
    lay_steps,
    timestep_of,
    training_sigmas,
)
from sdjax.models import ConfigError

STABLE_DIFFUSION = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
WHOLE = StepRules("leading", whole=True, drops_last=False, karras_over="steps", unit_start=True)

EVERY_SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS)
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES)


configs = st.fixed_dictionaries(
    {
        "num_train_timesteps": st.integers(100, 1200),
        "beta_start": st.floats(1e-5, 1e-3),
        "beta_end": st.floats(1.5e-3, 2e-2),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "rescale_betas_zero_snr": st.booleans(),
    }
)


# --- Noise over training timesteps ---


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_constant_betas_make_the_signal_fall_as_a_power(kind):
    config = SchedulerConfig(beta_start=0.01, beta_end=0.01, beta_schedule=kind)
    np.testing.assert_allclose(alphas_cumprod(config), 0.99 ** np.arange(1, 1001), rtol=1e-11)


def test_the_cosine_schedule_is_the_closed_form_of_its_paper():
    # Nichol and Dhariwal 2021, equation 17; only the last beta meets the limit of 0.999.
    angle = (np.arange(1, 1000) / 1000 + 0.008) / 1.008 * math.pi / 2
    expected = (np.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    found = alphas_cumprod(SchedulerConfig(beta_schedule="squaredcos_cap_v2"))
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-9)
    assert found[-1] == pytest.approx(found[-2] * 0.001)


@pytest.mark.parametrize(
    ("config", "ratio", "root"),
    [
        (SchedulerConfig(), 4.035993e-05, 0.006353),
        (SchedulerConfig(beta_schedule="squaredcos_cap_v2"), 2.4287e-09, 4.9282e-05),
        (STABLE_DIFFUSION, 0.004682, 0.068265),
    ],
    ids=["linear", "cosine", "stable diffusion"],
)
def test_the_last_timestep_has_the_published_signal_to_noise_ratio(config, ratio, root):
    # Lin et al. 2023, table 1.
    signal = alphas_cumprod(config)[-1]
    assert signal / (1 - signal) == pytest.approx(ratio, rel=1e-4)
    assert math.sqrt(signal) == pytest.approx(root, rel=1e-4)


def test_stable_diffusions_noise_runs_between_the_known_levels():
    sigmas = training_sigmas(STABLE_DIFFUSION)
    assert sigmas[0] == pytest.approx(0.0292, abs=5e-5)
    assert sigmas[-1] == pytest.approx(14.6146, abs=5e-5)


def test_zero_terminal_snr_ends_without_signal_and_moves_roots_by_one_straight_line():
    plain = np.sqrt(alphas_cumprod(STABLE_DIFFUSION))
    config = dataclasses.replace(STABLE_DIFFUSION, rescale_betas_zero_snr=True)
    signal = alphas_cumprod(config)
    assert signal[-1] == np.finfo(np.float16).smallest_subnormal
    assert signal[0] == pytest.approx(plain[0] ** 2, rel=1e-12)
    slopes = np.diff(np.sqrt(signal[:-1])) / np.diff(plain[:-1])
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-9)


def test_trained_betas_are_taken_as_they_are():
    config = SchedulerConfig(num_train_timesteps=3, trained_betas=(0.5, 0.2, 0.75), beta_schedule="not looked at")
    np.testing.assert_allclose(alphas_cumprod(config), [0.5, 0.4, 0.1])
    np.testing.assert_allclose(training_sigmas(config), [1, math.sqrt(1.5), 3])


@settings(deadline=None)
@given(configs)
def test_signal_falls_from_below_one_to_above_zero_and_noise_rises(options):
    config = SchedulerConfig(**options)
    signal = alphas_cumprod(config)
    assert signal[-1] > 0 and signal[0] < 1
    # The last one of a zero terminal signal-to-noise ratio is set, and may lie above the one before.
    end = -1 if config.rescale_betas_zero_snr else None
    assert (np.diff(signal[:end]) < 0).all()
    assert (np.diff(training_sigmas(config)[:end]) > 0).all()


@settings(deadline=None)
@given(configs, st.floats(0, 1))
def test_a_timestep_is_found_again_from_its_noise(options, where):
    levels = training_sigmas(SchedulerConfig(**options))
    timestep = np.round(np.array([where * (len(levels) - 1)]))
    np.testing.assert_allclose(timestep_of(levels[timestep.astype(int)], levels), timestep, atol=1e-6)


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
    laid = lay_steps(config, WHOLE, spacing, 10)
    assert laid.timesteps.tolist() == timesteps
    np.testing.assert_allclose(laid.sigmas[:-1], training_sigmas(config)[timesteps], rtol=1e-12)


def test_linspace_without_rounding_divides_the_range_evenly():
    laid = lay_steps(STABLE_DIFFUSION, SAMPLERS["euler"].rules, "linspace", 7)
    np.testing.assert_allclose(laid.timesteps, 166.5 * np.arange(6, -1, -1))


def test_dpm_solver_leaves_out_the_point_next_to_zero_noise():
    laid = lay_steps(STABLE_DIFFUSION, SAMPLERS["dpmpp_2m"].rules, "linspace", 9)
    assert laid.timesteps.tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111]
    assert laid.sigmas[-1] == 0


def test_a_spacing_in_the_checkpoint_is_used_unless_the_job_names_one():
    config = dataclasses.replace(STABLE_DIFFUSION, timestep_spacing="trailing")
    assert lay_steps(config, WHOLE, "uniform", 10).timesteps[0] == 999
    assert lay_steps(config, WHOLE, "leading", 10).timesteps[0] == 900
    assert lay_steps(STABLE_DIFFUSION, WHOLE, "uniform", 10).timesteps[0] == 900


def test_karras_noise_is_even_in_its_seventh_root_between_the_ends_of_the_steps():
    # Karras et al. 2022, equation 5.
    uniform = lay_steps(STABLE_DIFFUSION, SAMPLERS["euler"].rules, "uniform", 12)
    karras = lay_steps(STABLE_DIFFUSION, SAMPLERS["euler"].rules, "karras", 12)
    np.testing.assert_allclose(karras.sigmas[[0, -2, -1]], uniform.sigmas[[0, -2, -1]], rtol=1e-12)
    np.testing.assert_allclose(np.diff(karras.sigmas[:-1] ** (1 / 7), n=2), 0, atol=1e-12)


def test_karras_noise_spans_the_whole_training_range_for_dpm_solver():
    laid = lay_steps(STABLE_DIFFUSION, SAMPLERS["dpmpp_2m"].rules, "karras", 5)
    np.testing.assert_allclose(laid.sigmas[[0, -2]], training_sigmas(STABLE_DIFFUSION)[[-1, 0]], rtol=1e-12)
    assert laid.timesteps[[0, -1]].tolist() == [999, 0]


def test_karras_timesteps_say_the_noise_that_is_there():
    laid = lay_steps(STABLE_DIFFUSION, SAMPLERS["euler"].rules, "karras", 20)
    levels = training_sigmas(STABLE_DIFFUSION)
    logs = np.interp(laid.timesteps, np.arange(1000), np.log(levels))
    np.testing.assert_allclose(np.exp(logs), laid.sigmas[:-1], rtol=1e-9)


def test_the_first_latents_have_unit_variance_for_the_network_where_the_sampler_wants_it():
    unit = lay_steps(STABLE_DIFFUSION, SAMPLERS["ddim"].rules, "uniform", 10)
    assert unit.start == pytest.approx(math.sqrt(1 + unit.sigmas[0] ** 2))
    plain = lay_steps(STABLE_DIFFUSION, SAMPLERS["euler"].rules, "uniform", 10)
    assert plain.start == plain.sigmas[0]


def test_the_last_step_can_end_at_the_least_noise_instead_of_none():
    config = dataclasses.replace(STABLE_DIFFUSION, final_sigmas_type="sigma_min")
    assert lay_steps(config, WHOLE, "uniform", 10).sigmas[-1] == training_sigmas(config)[0]
    assert lay_steps(STABLE_DIFFUSION, WHOLE, "uniform", 10).sigmas[-1] == 0


@EVERY_SAMPLER
@EVERY_SCHEDULE
@settings(deadline=None, max_examples=25)
@given(options=configs, offset=st.integers(0, 1), share=st.floats(0, 1))
def test_any_number_of_steps_goes_down_by_finite_coefficients_or_is_refused(sampler, schedule, options, offset, share):
    config = SchedulerConfig(**options, steps_offset=offset)
    count = max(1, round(share * config.num_train_timesteps))
    rules = SAMPLERS[sampler].rules
    try:
        laid = lay_steps(config, rules, schedule, count)
    except ScheduleError as error:
        assert f"steps = {count} is too many" in str(error) and count > config.num_train_timesteps / 2
        return
    assert len(laid.sigmas) == len(laid.timesteps) + 1
    assert (np.diff(laid.sigmas) < 0).all()
    assert (np.diff(laid.timesteps) <= 0).all()
    assert laid.timesteps[-1] >= 0 and laid.timesteps[0] < config.num_train_timesteps
    coefficients = SAMPLERS[sampler].coefficients(config, laid)
    for column in jax.tree.leaves(coefficients):
        assert column.shape == laid.timesteps.shape and np.isfinite(column).all()


@pytest.mark.parametrize("count", [1, 2, 15, 20, 25, 50, 100])
@EVERY_SCHEDULE
@EVERY_SAMPLER
def test_usual_numbers_of_steps_are_given_as_asked(sampler, schedule, count):
    assert len(lay_steps(STABLE_DIFFUSION, SAMPLERS[sampler].rules, schedule, count).timesteps) == count


@pytest.mark.parametrize("count", [-1, 0, 1001])
def test_a_number_of_steps_that_the_model_has_not_is_refused(count):
    with pytest.raises(ScheduleError, match=f"steps = {count} is not within 1 to 1000"):
        lay_steps(STABLE_DIFFUSION, WHOLE, "uniform", count)


@pytest.mark.parametrize(("sampler", "schedule"), [("dpmpp_2m", "leading"), ("euler", "trailing")])
def test_so_many_steps_that_two_fall_on_one_timestep_are_refused(sampler, schedule):
    count = 1000 if schedule == "leading" else 769
    with pytest.raises(ScheduleError, match=f"steps = {count} is too many for the {schedule} spacing"):
        lay_steps(STABLE_DIFFUSION, SAMPLERS[sampler].rules, schedule, count)


# --- The config ---


def test_the_checkpoint_decides_the_default_schedule():
    assert default_schedule(STABLE_DIFFUSION) == "uniform"
    assert default_schedule(dataclasses.replace(STABLE_DIFFUSION, use_karras_sigmas=True)) == "karras"


def test_diffusers_config_of_stable_diffusion_is_read():
    data = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    assert SchedulerConfig.from_json(data) == dataclasses.replace(
        STABLE_DIFFUSION, set_alpha_to_one=False, steps_offset=1
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("beta_schedule", "sigmoid", "'sigmoid' is not one of linear, scaled_linear"),
        ("prediction_type", "sample", "'sample' is neither epsilon nor v_prediction"),
        ("timestep_spacing", "log", "'log'"),
        ("final_sigmas_type", "one", "'one'"),
        ("num_train_timesteps", 0, "0 is not positive"),
        ("trained_betas", [0.1, 0.2], "not one entry per training timestep"),
        ("beta_end", float("nan"), "beta_end = nan is not of the type float"),
        ("beta_end", None, "beta_end = None is not of the type float"),
        ("beta_end", 2.0, "beta_end = 2.0: expected numbers that rise, within 0 and 1"),
        ("beta_start", -1.0, "beta_start = -1.0"),
        ("trained_betas", [2.0] * 1000, "trained_betas are not all between 0 and 1"),
        ("use_karras_sigmas", "false", "use_karras_sigmas = 'false' is not of the type bool"),
        ("steps_offset", 2000, "steps_offset = 2000 is not within 0 to 999"),
        ("steps_offset", -1, "steps_offset = -1 is not within"),
        ("algorithm_type", "sde-dpmsolver++", "algorithm_type = 'sde-dpmsolver\\+\\+' is not supported"),
        ("solver_order", 3, "solver_order = 3 is not supported"),
        ("use_exponential_sigmas", True, "use_exponential_sigmas = True is not supported"),
        ("brand_new_switch", 1, "unknown key 'brand_new_switch'"),
    ],
)
def test_what_a_config_asks_for_and_is_not_known_is_an_error_that_names_file_and_key(key, value, message):
    with pytest.raises(ConfigError, match=message) as raised:
        SchedulerConfig.from_json({key: value})
    assert "scheduler/scheduler_config.json" in str(raised.value) and key in str(raised.value)
