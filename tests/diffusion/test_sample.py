import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion.brownian import increment
from sdjax.diffusion.noise import start_noise, step_noise, to_seed_words
from sdjax.diffusion.sample import sample, stack_tables
from sdjax.diffusion.samplers import SAMPLERS, Options, config_for, fill_in, table_of
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.diffusion.tableau import Table
from tests.diffusion.on_host import run_on_host

CONFIG = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
BATCH, ROWS, SHAPE = 3, 24, (4, 6, 2)

# (seed, sampler, steps, schedule); four steps are the least that all have.
images = st.tuples(
    st.integers(0, 2**64 - 1),
    st.sampled_from(list(SAMPLERS)),
    st.integers(4, 9),
    st.sampled_from(["uniform", "karras"]),
)


def laid(sampler: str, count: int, schedule: str = "uniform", **options: float) -> Table:
    config = config_for(CONFIG, sampler, own=False)
    return table_of(config, sampler, schedule, "k_diffusion", count, fill_in(config, sampler, Options(**options)))


def denoise(latents, level, memory):
    """As little linear as a network, and told the level."""
    wide = level.timestep[:, None, None, None], level.sigma[:, None, None, None]
    mixed = jnp.tanh(latents) * jnp.cos(0.01 * wide[0])
    return mixed + 0.1 * jnp.roll(latents, 1, axis=1) / (1 + wide[1]), memory


@jax.jit
def run(words, starts, tables):
    def draw(wanted):
        path = increment(words, wanted.span[:, 0], wanted.span[:, 1], SHAPE)
        return jnp.where(wanted.brownian[:, None, None, None], path, step_noise(words, wanted.place, SHAPE))

    return sample(denoise, start_noise(words, SHAPE) * starts[:, None, None, None], tables, draw)[0]


def sampled(batch):
    """The last latents of each image."""
    tables = [laid(*image[1:]) for image in batch]
    words = np.stack([to_seed_words(image[0]) for image in batch])
    starts = np.array([table.start for table in tables], np.float32)
    return np.asarray(run(words, starts, stack_tables(tables, ROWS)))


@settings(max_examples=40, deadline=None)
@given(batch=st.lists(images, min_size=BATCH, max_size=BATCH))
def test_an_image_is_the_same_to_the_bit_beside_others_of_any_sampler_and_number_of_steps(batch):
    together = sampled(batch)
    assert np.isfinite(together).all()
    for image, latents in zip(batch, together, strict=True):
        for copy in sampled([image] * BATCH):
            np.testing.assert_array_equal(latents, copy)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_the_same_to_the_bit_in_any_place_of_the_batch(sampler):
    batch = [(5, sampler, 4, "uniform"), (2**63, sampler, 9, "karras"), (7, "euler", 5, "uniform")]
    np.testing.assert_array_equal(sampled(batch), sampled(batch[::-1])[::-1])


def test_other_samplers_schedules_step_counts_and_seeds_do_not_compile_again():
    sampled([(1, "euler", 5, "uniform")] * BATCH)
    before = run._cache_size()
    sampled([(9, "heun", 7, "karras"), (2**40, "dpmpp_sde", 4, "uniform"), (3, "uni_pc", 9, "karras")])
    assert run._cache_size() == before


@jax.jit
def run_with(noises, first, tables):
    return sample(denoise, first, tables, lambda wanted: noises[wanted.place])[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_compiled_loop_does_what_the_table_says(sampler):
    # Restart's noise is drawn from twenty steps on.
    table = laid(sampler, 20 if sampler == "restart" else 9, "karras")
    rng = np.random.default_rng(0)
    start, noises = rng.standard_normal(SHAPE), rng.standard_normal((41, *SHAPE))

    def alone(latents, sigma, timestep):
        return np.tanh(latents) * np.cos(0.01 * timestep) + 0.1 * np.roll(latents, 1, axis=0) / (1 + sigma)

    wanted = run_on_host(table, alone, start, noises)
    first = (start[None] * table.start).astype(np.float32)
    found = run_with(noises[:, None].astype(np.float32), first, stack_tables([table], 40))
    np.testing.assert_allclose(np.asarray(found)[0], wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_tables_of_different_lengths_are_stacked_with_a_column_for_each_image():
    tables = [laid("euler", 2), laid("heun", 3)]
    stacked = stack_tables(tables, 6)
    for column in jax.tree.leaves(stacked.evaluations):
        assert column.shape[:2] == (6, 2) and column.dtype in (np.float32, bool)
    assert stacked.counts.tolist() == [2, 5]
    for index, table in enumerate(tables):
        count = table.evaluations
        np.testing.assert_array_equal(stacked.evaluations.sigma[:count, index], table.sigma.astype(np.float32))
        np.testing.assert_array_equal(stacked.evaluations.weights[:count, index], table.weights.astype(np.float32))
        np.testing.assert_array_equal(stacked.evaluations.timestep[count:, index], np.float32(table.timestep[-1]))


def test_the_latents_of_chosen_evaluations_are_kept_for_previews():
    tables = [laid("euler", 5), laid("heun", 3)]
    tables = stack_tables(tables, 8)
    places = np.full((8, 2), -1, np.int32)
    places[[0, 2, 4], 0] = [0, 1, 2]
    places[[0, 4], 1] = [0, 1]
    starts = jnp.asarray(np.random.default_rng(0).standard_normal((2, *SHAPE)), jnp.float32) * 14.6
    inputs = []

    def tanh(latents, level, memory):
        inputs.append(np.asarray(latents))
        return jnp.tanh(latents), memory

    with jax.disable_jit():
        _, previews = sample(tanh, starts, tables, None, jnp.asarray(places), 4)
    sigma = tables.evaluations.sigma
    for place, evaluation, image in ((0, 0, 0), (1, 2, 0), (2, 4, 0), (0, 0, 1), (1, 4, 1)):
        noisy = inputs[evaluation][image]
        np.testing.assert_allclose(
            previews.noisy[place, image], noisy / np.hypot(sigma[evaluation, image], 1), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(previews.denoised[place, image], np.tanh(noisy), rtol=1e-5, atol=1e-6)
    assert not np.asarray(previews.noisy)[3].any() and not np.asarray(previews.noisy)[2, 1].any()


def test_the_network_is_given_what_it_kept_of_the_evaluation_before():
    tables = stack_tables([laid("euler", 5), laid("euler", 3)], 8)

    def counting(latents, level, memory):
        return jnp.full_like(latents, memory), memory + 1

    places = np.arange(8, dtype=np.int32)[:, None].repeat(2, axis=1)
    latents = jnp.zeros((2, *SHAPE), jnp.float32)
    tables = jax.tree.map(jnp.asarray, tables)
    _, previews = sample(counting, latents, tables, None, jnp.asarray(places), 5, memory=jnp.zeros(()))
    np.testing.assert_array_equal(previews.denoised[:, 0, 0, 0, 0], np.arange(5))
