import dataclasses

import numpy as np
import pytest
import scipy.special
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sdjax.diffusion.scheduler_config import SchedulerConfig, training_sigmas
from sdjax.diffusion.schedules import SCHEDULES, beta_quantiles, default_schedule, timestep_of
from tests.diffusion.scheduler_configs import STABLE_DIFFUSION, scheduler_settings
from tests.golden import samplers as golden


@settings(deadline=None)
@given(scheduler_settings, st.floats(0, 1))
def test_a_timestep_is_found_again_from_its_noise(options, where):
    levels = training_sigmas(SchedulerConfig(**options))
    assume((np.diff(levels) > 0).all())  # others are refused where a config is read
    timestep = np.round(np.array([where * (len(levels) - 1)]))
    np.testing.assert_allclose(timestep_of(levels[timestep.astype(int)], levels), timestep, atol=1e-6)


@pytest.mark.parametrize("schedule", golden.WEBUI_SCHEDULES)
@pytest.mark.parametrize("count", golden.WEBUI_STEPS)
def test_a_schedule_has_the_sigmas_that_a1111_gave(schedule, count):
    np.testing.assert_allclose(
        golden.sigmas(schedule, count), golden.recorded()[f"sigmas {schedule} {count}"], rtol=golden.SIGMA_TOLERANCE
    )


def test_every_schedule_but_diffusers_own_is_compared_with_a1111():
    # Lu's lambdas are diffusers', and compared with its DPM-Solver.
    assert set(SCHEDULES) - set(golden.WEBUI_SCHEDULES) == {"lu"}


def test_beta_quantiles_are_scipys_to_the_last_digits():
    # Not scipy's own: its last bits depend on the processor, and pixels on those of the quantiles.
    shares = 1 - np.linspace(0, 1, 101)
    np.testing.assert_allclose(beta_quantiles(shares, 0.6, 0.6), scipy.special.betaincinv(0.6, 0.6, shares), atol=5e-14)


def test_beta_quantiles_are_those_of_the_distribution():
    # Of (1/2, 1/2) and (1, 1) there are closed forms.
    shares = np.linspace(0, 1, 11)
    np.testing.assert_allclose(beta_quantiles(shares, 0.5, 0.5), np.sin(np.pi * shares / 2) ** 2, atol=1e-12)
    np.testing.assert_allclose(beta_quantiles(shares, 1.0, 1.0), shares, atol=1e-12)
    np.testing.assert_allclose(beta_quantiles(shares, 1.0, 2.5), 1 - (1 - shares) ** 0.4, atol=1e-12)


def test_the_checkpoint_decides_the_default_schedule():
    assert default_schedule(STABLE_DIFFUSION) == "uniform"
    for flag, schedule in (("karras_sigmas", "karras"), ("exponential_sigmas", "exponential"), ("lu_lambdas", "lu")):
        assert default_schedule(dataclasses.replace(STABLE_DIFFUSION, **{f"use_{flag}": True})) == schedule
