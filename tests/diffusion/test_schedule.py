import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sdjax.diffusion.samplers import SAMPLERS, Options, config_for, fill_in, table_of
from sdjax.diffusion.schedule import (
    SCHEDULES,
    SPACINGS,
    ScheduleError,
    SchedulerConfig,
    StepRules,
    Steps,
    alphas_cumprod,
    beta_quantiles,
    default_schedule,
    default_spacing,
    lay_steps,
    timestep_of,
    training_sigmas,
)
from sdjax.models import ConfigError
from tests.golden import samplers as golden

STABLE_DIFFUSION = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
WHOLE = StepRules("leading", whole=True, unit_start=True, schedules=("uniform",))


def laid(sampler: str, schedule: str, count: int, spacing: str | None = None, **config: object) -> Steps:
    """Steps of one sampler, in its own spacing if none is named."""
    of_model = dataclasses.replace(STABLE_DIFFUSION, **config)
    rules = SAMPLERS[sampler].rules
    return lay_steps(of_model, rules, schedule, spacing or default_spacing(of_model, rules, schedule), count)


EVERY_SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS)
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES)


configs = st.fixed_dictionaries(
    {
        "num_train_timesteps": st.integers(100, 1200),
        "beta_start": st.floats(1e-5, 1e-3),
        "beta_end": st.floats(1.5e-3, 2e-2),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "exp", "sigmoid"]),
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
    config = SchedulerConfig(
        num_train_timesteps=3, trained_betas=(0.5, 0.2, 0.75), beta_schedule="not looked at", original_inference_steps=1
    )
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
    assume((np.diff(levels) > 0).all())  # others are refused where a config is read
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


# --- Schedules of A1111 ---


@pytest.mark.parametrize("schedule", golden.WEBUI_SCHEDULES)
@pytest.mark.parametrize("count", golden.WEBUI_STEPS)
def test_a_schedule_has_the_sigmas_that_a1111_gave(schedule, count):
    np.testing.assert_allclose(
        golden.sigmas(schedule, count), golden.recorded()[f"sigmas {schedule} {count}"], rtol=golden.SIGMA_TOLERANCE
    )


def test_every_schedule_but_diffusers_own_is_compared_with_a1111():
    # Lu's lambdas are diffusers', and compared with its DPM-Solver.
    assert set(SCHEDULES) - set(golden.WEBUI_SCHEDULES) == {"lu"}


def test_dpm_2_leaves_out_the_last_but_one_sigma_as_in_a1111():
    plain, discarding = laid("euler", "karras", 11, "k_diffusion"), laid("dpm_2", "karras", 10, "k_diffusion")
    np.testing.assert_array_equal(discarding.sigmas, np.delete(plain.sigmas, -2))


def test_beta_quantiles_are_those_of_the_distribution():
    # Of (1/2, 1/2) and (1, 1) there are closed forms.
    shares = np.linspace(0, 1, 11)
    np.testing.assert_allclose(beta_quantiles(shares, 0.5, 0.5), np.sin(np.pi * shares / 2) ** 2, atol=1e-12)
    np.testing.assert_allclose(beta_quantiles(shares, 1.0, 1.0), shares, atol=1e-12)
    np.testing.assert_allclose(beta_quantiles(shares, 1.0, 2.5), 1 - (1 - shares) ** 0.4, atol=1e-12)


# --- Any number of steps ---


@EVERY_SAMPLER
@settings(deadline=None, max_examples=30)
@given(
    schedule=st.sampled_from(list(SCHEDULES)),
    spacing=st.sampled_from(SPACINGS),
    options=configs,
    offset=st.integers(0, 1),
    count=st.integers(1, 40) | st.integers(1, 1200),
)
def test_any_number_of_steps_goes_down_by_finite_weights_or_is_refused(
    sampler, schedule, spacing, options, offset, count
):
    config = config_for(SchedulerConfig(**options, steps_offset=offset), sampler, own=False)
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


# --- The config ---


def test_the_checkpoint_decides_the_default_schedule():
    assert default_schedule(STABLE_DIFFUSION) == "uniform"
    for flag, schedule in (("karras_sigmas", "karras"), ("exponential_sigmas", "exponential"), ("lu_lambdas", "lu")):
        assert default_schedule(dataclasses.replace(STABLE_DIFFUSION, **{f"use_{flag}": True})) == schedule


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
        STABLE_DIFFUSION, set_alpha_to_one=False, steps_offset=1, skip_prk_steps=True
    )


def test_what_the_file_does_not_say_is_the_default_of_its_class():
    assert not SchedulerConfig.from_json({"_class_name": "PNDMScheduler"}).set_alpha_to_one
    assert SchedulerConfig.from_json({"_class_name": "DDIMScheduler"}).set_alpha_to_one
    assert SchedulerConfig.from_json({"_class_name": "LCMScheduler"}).beta_schedule == "scaled_linear"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("beta_schedule", "laplace", "'laplace' is not one of linear, scaled_linear"),
        ("prediction_type", "flow_prediction", "'flow_prediction' is not one of epsilon, v_prediction, sample"),
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
        ("algorithm_type", "dpmsolver", "algorithm_type = dpmsolver needs final_sigmas_type = sigma_min"),
        ("algorithm_type", "rk45", "'rk45' is not one of dpmsolver"),
        ("solver_order", 4, "solver_order = 4 is not one of 1, 2, 3"),
        ("solver_type", "rk", "'rk' is not one of midpoint, heun"),
        ("use_flow_sigmas", True, "use_flow_sigmas = True is not supported"),
        ("original_inference_steps", 2000, "original_inference_steps = 2000 is more than num_train_timesteps"),
        ("sample_max_value", -0.5, "sample_max_value = -0.5: expected a number from 0.0"),
        ("num_train_timesteps", 2_000_000_000, "num_train_timesteps = 2000000000: expected 2 to 100000"),
        ("num_train_timesteps", True, "num_train_timesteps = True is not of the type int"),
        ("beta_end", 10**400, "beta_end = 10+... is not of the type float"),
        ("beta_start", 1e-300, "the noise does not rise from timestep to timestep"),
        ("beta_end", 0.999, "the noise does not rise from timestep to timestep"),
        ("sigma_min", 0, "sigma_min = 0 is not positive"),
        ("sigma_min", 200, "sigma_min = 200, sigma_max = None: 200 is not below"),
        ("lambda_min_clipped", 50, "lambda_min_clipped = 50 leaves fewer than two noise levels"),
        ("_class_name", "x" * 1000, "_class_name = 'x+ is not the name of a class"),
        ("_class_name", "Euler\x1b[31m", "is not the name of a class"),
        ("_class_name", ["DDPMScheduler"], "is not the name of a class"),
        ("brand_new_switch", 1, "unknown key 'brand_new_switch'"),
    ],
)
def test_what_a_config_asks_for_and_is_not_known_is_an_error_that_names_file_and_key(key, value, message):
    with pytest.raises(ConfigError, match=message) as raised:
        SchedulerConfig.from_json({key: value})
    assert "scheduler/scheduler_config.json" in str(raised.value) and key in str(raised.value)
