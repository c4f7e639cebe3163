"""The samplers on data whose diffusion is known exactly: normal, with mean MEAN and deviation SPREAD.

The best denoiser is then a weighted mean of latents and MEAN, and along the probability flow the distance
to MEAN goes as sqrt(SPREAD^2 + sigma^2) (Karras et al. 2022, appendix B.3).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.noise import seed_words, step_noise
from sdjax.diffusion.sample import sample
from sdjax.diffusion.samplers import CLASSES, SAMPLERS
from sdjax.diffusion.schedule import SchedulerConfig, Steps, lay_steps

MEAN, SPREAD = 0.7, 0.5
CONFIG = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
# Of convergence, for every sampler that draws no noise.
ORDERS = {"ddim": 1, "euler": 1, "dpmpp_2m": 2}


def exact_denoiser(latents, level):
    share = SPREAD**2 / (SPREAD**2 + level.sigma**2)
    return share * latents + (1 - share) * MEAN


def falling(first, last, count):
    """Steps evenly spaced in the logarithm of noise, on no model's grid, from the first level to the last."""
    return Steps(np.zeros(count), np.geomspace(first, last, count + 1), first, "leading", karras=True)


@functools.partial(jax.jit, static_argnums=0)
def run(name, latents, table, steps, words):
    sampler = SAMPLERS[name]
    draw = functools.partial(step_noise, words, shape=latents.shape[1:]) if sampler.draws_noise else None
    return sample(sampler, exact_denoiser, latents, table, steps, draw)


def sampled(name, latents, steps):
    """One batch through one schedule, in the latents' own precision."""
    table = SAMPLERS[name].coefficients(CONFIG, steps)
    batch, count = len(latents), len(steps.timesteps)
    columns = jax.tree.map(lambda column: jnp.asarray(np.tile(column[:, None], (1, batch)), latents.dtype), table)
    words = jnp.asarray(np.stack([seed_words(seed) for seed in range(batch)]))
    return np.asarray(run(name, latents, columns, jnp.full(batch, count, jnp.int32), words))


def error(name, count):
    """Of the end point, relative to how far the start was from the mean."""
    first, last = 20.0, 0.2
    steps = falling(first, last, count)
    with jax.enable_x64(True):
        start = jnp.asarray([-30.0, 12.0], jnp.float64)[:, None, None, None]
        found = sampled(name, start, steps)
        if name == "ddim":  # diffusers' last step ends at the variance that the network sees
            found = found * math.hypot(last, 1)
        exact = MEAN + (np.asarray(start) - MEAN) * math.sqrt((SPREAD**2 + last**2) / (SPREAD**2 + first**2))
    return float(np.abs(found / exact - 1).max())


def test_every_sampler_without_noise_says_its_order():
    assert set(ORDERS) == {name for name, sampler in SAMPLERS.items() if not sampler.draws_noise}


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order_of_the_method(name, record_property):
    # So many that the order has set in: with fewer, dpmpp_2m still feels its first step.
    counts = np.array([128, 256, 512, 1024])
    errors = [error(name, count) for count in counts]
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    record_property("order", order)
    print(f"{name}: order {order:.3f}, errors {errors}")
    assert order == pytest.approx(ORDERS[name], abs=0.15)


def test_the_second_order_method_is_the_better_one_at_few_steps():
    assert error("dpmpp_2m", 16) < error("euler", 16) / 4


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", ["uniform", "karras"])
def test_samples_have_the_mean_and_deviation_of_the_data(name, schedule):
    # At 100 uniform steps euler_ancestral is 6 % short of the deviation, as its recursion says exactly.
    steps = lay_steps(CONFIG, SAMPLERS[name].rules, schedule, 400)
    # Exactly what noised data of the first level are: 8 images of 4096 values.
    rng = np.random.default_rng(0)
    spread = math.hypot(SPREAD, steps.sigmas[0])
    start = jnp.asarray(MEAN + spread * rng.standard_normal((8, 32, 32, 4)), jnp.float32)
    found = sampled(name, start, steps)
    print(f"{name} {schedule}: mean {found.mean():.4f}, deviation {found.std():.4f}")
    assert found.mean() == pytest.approx(MEAN, abs=0.015)
    assert found.std() == pytest.approx(SPREAD, rel=0.05)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_step_to_no_noise_gives_what_the_denoiser_finds(name):
    sigma = 5.0
    steps = Steps(np.zeros(1), np.array([sigma, 0.0]), sigma, "leading", karras=True)
    start = jnp.asarray(np.linspace(-9, 9, 16).reshape(2, 2, 2, 2), jnp.float32)
    share = SPREAD**2 / (SPREAD**2 + sigma**2)
    np.testing.assert_allclose(
        sampled(name, start, steps), share * np.asarray(start) + (1 - share) * MEAN, rtol=1e-5, atol=1e-6
    )


def test_ancestral_steps_keep_the_variance_of_the_next_level():
    steps = lay_steps(CONFIG, SAMPLERS["euler_ancestral"].rules, "karras", 30)
    table = SAMPLERS["euler_ancestral"].coefficients(CONFIG, steps)
    down = table.ratio * steps.sigmas[:-1]
    np.testing.assert_allclose(down**2 + table.up**2, steps.sigmas[1:] ** 2, rtol=1e-12)
    assert table.up[-1] == 0 and (table.up[:-1] > 0).all()


def test_ddim_on_the_training_grid_goes_down_by_whole_steps_of_it():
    # As in diffusers: with trailing spacing each step goes to t - 100, which is the next timestep, and below 0
    # to no noise.
    steps = lay_steps(CONFIG, SAMPLERS["ddim"].rules, "trailing", 10)
    table = SAMPLERS["ddim"].coefficients(CONFIG, steps)
    np.testing.assert_allclose(table.signal, 1.0)
    np.testing.assert_allclose(table.direction, steps.sigmas[1:] / steps.sigmas[:-1], atol=1e-12)


def test_ddim_ends_at_the_least_noise_where_the_checkpoint_asks_for_it():
    config = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False)
    steps = lay_steps(config, SAMPLERS["ddim"].rules, "leading", 10)
    table = SAMPLERS["ddim"].coefficients(config, steps)
    assert table.direction[-1] > 0
    assert SAMPLERS["ddim"].coefficients(CONFIG, lay_steps(CONFIG, SAMPLERS["ddim"].rules, "leading", 10))[2][-1] == 0


def test_every_class_of_diffusers_leads_to_a_sampler():
    assert set(CLASSES.values()) <= set(SAMPLERS)
