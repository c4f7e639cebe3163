import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion.noise import seed_words, start_noise, step_noise
from sdjax.diffusion.sample import sample, stack_tables
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.schedule import SchedulerConfig, lay_steps

CONFIG = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
BATCH, ROWS, SHAPE = 3, 9, (4, 6, 2)

images = st.tuples(st.integers(0, 2**64 - 1), st.integers(1, ROWS), st.sampled_from(["uniform", "karras"]))


def denoise(latents, level):
    """As little linear as a network, and told the level."""
    mixed = jnp.tanh(latents) * jnp.cos(0.01 * level.timestep)
    return mixed + 0.1 * jnp.roll(latents, 1, axis=1) / (1 + level.sigma)


@functools.partial(jax.jit, static_argnums=0)
def run(name, words, start, table, steps):
    sampler = SAMPLERS[name]
    draw = functools.partial(step_noise, words, shape=SHAPE) if sampler.draws_noise else None
    latents = start_noise(words, SHAPE) * start[:, None, None, None]
    return sample(sampler, denoise, latents, table, steps, draw)


def sampled(name, batch):
    """The last latents of (seed, steps, schedule) for each image."""
    sampler = SAMPLERS[name]
    laid = [lay_steps(CONFIG, sampler.rules, schedule, count) for _, count, schedule in batch]
    return np.asarray(
        run(
            name,
            jnp.asarray(np.stack([seed_words(seed) for seed, _, _ in batch])),
            jnp.asarray([steps.start for steps in laid], jnp.float32),
            jax.tree.map(jnp.asarray, stack_tables([sampler.coefficients(CONFIG, steps) for steps in laid], ROWS)),
            jnp.asarray([len(steps.timesteps) for steps in laid], jnp.int32),
        )
    )


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=10, deadline=None)
@given(batch=st.lists(images, min_size=BATCH, max_size=BATCH))
def test_an_image_is_the_same_to_the_bit_beside_others_of_any_number_of_steps(name, batch):
    together = sampled(name, batch)
    assert np.isfinite(together).all()
    for image, latents in zip(batch, together, strict=True):
        for copy in sampled(name, [image] * BATCH):
            np.testing.assert_array_equal(latents, copy)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_to_the_bit_in_any_place_of_the_batch(name):
    batch = [(5, 3, "uniform"), (2**63, 9, "karras"), (7, 1, "uniform")]
    forwards, backwards = sampled(name, batch), sampled(name, batch[::-1])
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_tables_of_different_lengths_are_stacked_with_a_column_for_each_image():
    euler = SAMPLERS["euler"]
    tables = [euler.coefficients(CONFIG, lay_steps(CONFIG, euler.rules, "uniform", count)) for count in (2, 5)]
    stacked = stack_tables(tables, 6)
    for column in jax.tree.leaves(stacked):
        assert column.shape == (6, 2) and column.dtype == np.float32
    for index, table in enumerate(tables):
        count = len(table.ratio)
        np.testing.assert_array_equal(stacked.level.sigma[:count, index], table.level.sigma.astype(np.float32))
        np.testing.assert_array_equal(stacked.ratio[:count, index], table.ratio.astype(np.float32))
        np.testing.assert_array_equal(stacked.level.timestep[count:, index], np.float32(table.level.timestep[-1]))


def test_other_schedules_step_counts_and_seeds_do_not_compile_again():
    sampled("euler", [(1, 2, "uniform")] * BATCH)
    before = run._cache_size()
    sampled("euler", [(9, 7, "karras"), (2**40, 1, "uniform"), (3, ROWS, "karras")])
    assert run._cache_size() == before
