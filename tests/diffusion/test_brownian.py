import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion import noise
from sdjax.diffusion.brownian import TorchBrownianTree, increment
from tests.golden import noise as golden

# From zero terminal SNR to nothing; steps wide and as near as 1e-3.
SIGMAS = (4096.0, 14.6146, 14.6, 9.0, 2.0, 1.999, 0.7, 0.1, 0.03, 0.001, 0.0)
RECORDED = golden.recorded("tree")

drawn = jax.jit(increment, static_argnums=3)
levels = st.sampled_from(SIGMAS) | st.floats(2**-10, 5000, width=32)


def words_of(seeds):
    return jnp.asarray(np.stack([noise.to_seed_words(seed) for seed in seeds]))


def increments(seeds, start, end, shape=(2, 2)):
    """Standardised, an image each, the same step for all."""
    ends = (jnp.full(len(seeds), sigma, jnp.float32) for sigma in (start, end))
    return np.asarray(drawn(words_of(seeds), *ends, shape))


def span(start, end):
    return np.abs(np.float32(end) - np.float32(start))


@functools.cache
def many_paths():
    """Standardised increments between neighbours of SIGMAS: (steps, 3000 seeds x 4 values)."""
    steps = [increments(range(3000), *step).ravel() for step in itertools.pairwise(SIGMAS)]
    return np.stack(steps).astype(np.float64)


# --- on the device ---


def test_increments_are_standard_normal():
    values = many_paths()
    count = values.shape[1]
    assert np.abs(values.mean(1)).max() < 5 / np.sqrt(count)
    assert np.abs(values.var(1) - 1).max() < 5 * np.sqrt(2 / count)
    assert np.abs((values**4).mean(1) - 3).max() < 5 * np.sqrt(96 / count)


def test_increments_over_steps_that_do_not_overlap_are_independent():
    values = many_paths()
    for these in (values, values**2):
        correlation = np.abs(np.corrcoef(these) - np.eye(len(values)))
        assert correlation.max() < 5 / np.sqrt(values.shape[1])


def test_increments_over_steps_that_overlap_share_what_is_common():
    # Brownian motion: the covariance is the length that both cover.
    seeds = range(3000)
    whole, upper = increments(seeds, 10, 2).ravel(), increments(seeds, 10, 7).ravel()
    inner, crossing = increments(seeds, 6, 3).ravel(), increments(seeds, 8, 1).ravel()
    for (one, other), common, lengths in (
        ((whole, upper), 3, 8 * 3),
        ((whole, inner), 3, 8 * 3),
        ((whole, crossing), 6, 8 * 7),
        ((upper, crossing), 1, 3 * 7),
        ((upper, inner), 0, 3 * 3),
    ):
        assert (one * other).mean() == pytest.approx(common / math.sqrt(lengths), abs=5 * math.sqrt(2 / one.size))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, noise.MAX_SEED), st.lists(levels, min_size=3, max_size=3))
def test_increments_add_up(seed, sigmas):
    high, middle, low = sorted(sigmas, reverse=True)
    parts = [increments([seed], *ends) * np.sqrt(span(*ends)) for ends in ((high, middle), (middle, low))]
    whole = increments([seed], high, low) * np.sqrt(span(high, low))
    # Values of W itself, of which these are differences, are about sqrt(sigma) large.
    np.testing.assert_allclose(sum(parts), whole, rtol=0, atol=1e-5 * math.sqrt(high))


@settings(deadline=None, max_examples=20)
@given(levels, levels)
def test_a_step_back_is_the_step_with_the_other_sign(start, end):
    np.testing.assert_array_equal(increments([5], start, end), -increments([5], end, start))


def test_no_step_gives_nothing():
    for sigma in SIGMAS:
        np.testing.assert_array_equal(increments([5], sigma, sigma), np.zeros((1, 2, 2)))


def test_near_sigmas_are_told_apart_to_the_last_bit():
    sigma = np.float32(3.0)
    next_one = np.nextafter(sigma, np.float32(4))
    values = increments(range(3000), next_one, sigma).ravel()
    # The difference of values of W about 2 large, each rounded to 2e-7, over the root of 2.4e-7.
    assert values.var() == pytest.approx(1, abs=5 * np.sqrt(2 / values.size))


@settings(deadline=None, max_examples=5)
@given(st.permutations(range(4)))
def test_a_path_depends_neither_on_place_nor_on_neighbours(order):
    seeds = np.array([0, 7, 2**32, noise.MAX_SEED], object)
    start, end = np.float32([14.6, 9, 4096, 0.1]), np.float32([14.5, 3, 14.6, 0])
    chosen = np.array(order)

    def draw(which):
        return np.asarray(drawn(words_of(seeds[which]), jnp.asarray(start[which]), jnp.asarray(end[which]), (8, 8, 4)))

    together = draw(np.arange(4))
    np.testing.assert_array_equal(draw(chosen), together[chosen])
    for place in range(4):
        np.testing.assert_array_equal(draw(np.array([place])), together[[place]])


def test_seeds_and_uses_of_a_seed_share_no_noise():
    seeds = [0, 1, 2**32, noise.MAX_SEED]
    shape = (16, 16, 4)
    draws = [
        increments(seeds, 10, 5, shape),
        increments(seeds, 5, 1, shape),
        np.asarray(noise.start_noise(words_of(seeds), shape)),
        np.asarray(noise.step_noise(words_of(seeds), 0, shape)),
    ]
    flat = np.concatenate([draw.reshape(len(seeds), -1) for draw in draws])
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 5 / np.sqrt(flat.shape[1])


# --- torchsde's ---


def tree_of(name):
    source, recorded_seed = name.split()
    channels, height, width = golden.TREE_SHAPE
    shape = (height, width, channels)
    return TorchBrownianTree(golden.SIGMA_MIN, golden.SIGMA_MAX, int(recorded_seed), shape, source)


@pytest.mark.parametrize("name", RECORDED)
def test_a_tree_gives_what_torchsde_gives(name):
    tree = tree_of(name)
    given_values = np.stack([tree(*query) for query in golden.queries()]).transpose(0, 3, 1, 2)
    print(f"{name}: at most {np.abs(given_values - RECORDED[name]).max():.1e} from torchsde")
    np.testing.assert_allclose(given_values, RECORDED[name], rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=5)
@given(st.permutations(range(len(golden.queries()))))
def test_a_tree_does_not_depend_on_the_order_of_steps(order):
    tree, shuffled = tree_of("torch 42"), tree_of("torch 42")
    wanted = [tree(*query) for query in golden.queries()]
    for index in order:
        np.testing.assert_array_equal(shuffled(*golden.queries()[index]), wanted[index])


def test_steps_beyond_a_trees_ends_stop_there():
    tree = tree_of("torch 42")
    assert not tree(golden.SIGMA_MAX + 1, golden.SIGMA_MAX + 2).any()
    longer, whole = (tree(start, golden.SIGMA_MIN) for start in (golden.SIGMA_MAX + 1, golden.SIGMA_MAX))
    lengths = [span(golden.SIGMA_MAX + more, golden.SIGMA_MIN) for more in (1, 0)]
    np.testing.assert_allclose(longer * np.sqrt(lengths[0]), whole * np.sqrt(lengths[1]), rtol=1e-6)


def test_a_trees_increments_are_standard_normal():
    # 50 seeds, two neighbouring steps.
    trees = [TorchBrownianTree(0.03, 14.6, seed, (8, 8, 4)) for seed in range(50)]
    steps = np.stack([[tree(9, 3).ravel(), tree(3, 2.5).ravel()] for tree in trees])
    one, other = steps.swapaxes(0, 1).reshape(2, -1)
    for values in (one, other):
        assert abs(values.mean()) < 5 / np.sqrt(values.size)
        assert values.var() == pytest.approx(1, abs=5 * np.sqrt(2 / values.size))
    assert abs((one * other).mean()) < 5 / np.sqrt(one.size)
