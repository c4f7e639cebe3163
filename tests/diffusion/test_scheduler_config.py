import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings

from sdjax.diffusion.scheduler_config import SchedulerConfig, alphas_cumprod, training_sigmas
from sdjax.models import ConfigError
from tests.diffusion.scheduler_configs import STABLE_DIFFUSION, scheduler_settings


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
@given(scheduler_settings)
def test_signal_falls_from_below_one_to_above_zero_and_noise_rises(options):
    config = SchedulerConfig(**options)
    signal = alphas_cumprod(config)
    assert signal[-1] > 0 and signal[0] < 1
    # The last one of a zero terminal signal-to-noise ratio is set, and may lie above the one before.
    end = -1 if config.rescale_betas_zero_snr else None
    assert (np.diff(signal[:end]) < 0).all()
    assert (np.diff(training_sigmas(config)[:end]) > 0).all()


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
