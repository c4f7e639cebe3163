import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion.noise import (
    MAX_SEED,
    HostNoiseStream,
    host_generator,
    resized,
    slerp,
    start_noise,
    step_noise,
    to_seed_words,
    varied_start_noise,
)
from tests.golden import noise as golden

# What A1111's ImageRNG gives at the start and for two steps, under "source case".
RECORDED = golden.recorded("image")

SHAPE = (16, 16, 4)
HOST_SOURCES = ("torch", "philox")
seeds = st.integers(0, MAX_SEED)
strengths = st.floats(0, 1, width=32)


def words_of(*seeds):
    return jnp.asarray(np.stack([to_seed_words(seed) for seed in seeds]))


def varied(seeds, variation_seeds, strengths, shape, from_shape=None):
    words = words_of(*seeds), words_of(*variation_seeds)
    return np.asarray(varied_start_noise(*words, jnp.asarray(strengths, jnp.float32), shape, from_shape))


# --- threefry ---


@given(seeds)
def test_both_halves_of_a_seed_are_in_its_words(seed):
    high, low = (int(word) for word in to_seed_words(seed))
    assert (high << 32) + low == seed


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_a_seed_is_jaxs_key_of_that_seed(seed):
    # For anyone who wants to draw the same noise with JAX alone.
    np.testing.assert_array_equal(jax.random.key_data(jax.random.key(seed, impl="threefry2x32")), to_seed_words(seed))
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), 0)
    np.testing.assert_array_equal(start_noise(words_of(seed), SHAPE)[0], jax.random.normal(key, SHAPE, jnp.float32))


@settings(deadline=None, max_examples=20)
@given(st.lists(seeds, min_size=3, max_size=3), st.permutations(range(3)))
def test_noise_depends_neither_on_place_nor_on_neighbours(three, order):
    together = np.asarray(start_noise(words_of(*three), SHAPE))
    shuffled = np.asarray(start_noise(words_of(*(three[index] for index in order)), SHAPE))
    np.testing.assert_array_equal(shuffled, together[np.array(order)])
    for seed, alone in zip(three, together, strict=True):
        np.testing.assert_array_equal(start_noise(words_of(seed), SHAPE)[0], alone)


def test_step_noise_depends_neither_on_place_nor_on_neighbours():
    together = np.asarray(step_noise(words_of(1, 2, 3), 4, SHAPE))
    for index, seed in enumerate((1, 2, 3)):
        np.testing.assert_array_equal(step_noise(words_of(seed), 4, SHAPE)[0], together[index])
    np.testing.assert_array_equal(step_noise(words_of(3, 1), 4, SHAPE), together[np.array([2, 0])])


def test_no_two_uses_of_a_seed_and_no_two_seeds_share_noise():
    words = words_of(0, 1, 2**32, 2**32 + 1, 2**63, MAX_SEED)
    draws = [start_noise(words, SHAPE), *(step_noise(words, step, SHAPE) for step in range(4))]
    flat = np.concatenate([np.asarray(draw).reshape(len(words), -1) for draw in draws])
    correlation = np.abs(np.corrcoef(flat) - np.eye(len(flat)))
    # Five standard errors of 1024 values.
    assert correlation.max() < 5 / np.sqrt(flat.shape[1])


# --- the host's sources, as A1111 and diffusers draw from them ---


@pytest.mark.parametrize("name", RECORDED)
def test_an_image_gets_the_noise_that_a1111_gives_it(name):
    source, case = name.split(" ", 1)
    (channels, height, width), strength, size = golden.IMAGES[case]
    shape = (height, width, channels)
    noise = HostNoiseStream(
        source,
        golden.IMAGE_SEED,
        shape,
        variation_seed=golden.VARIATION_SEED,
        variation_strength=strength,
        resize_from=size,
    )
    drawn = np.stack([noise.first, noise.next(shape), noise.next(shape)]).transpose(0, 3, 1, 2)
    print(f"{name}: at most {np.abs(drawn - RECORDED[name]).max():.1e} from A1111")
    np.testing.assert_allclose(drawn, RECORDED[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("source", HOST_SOURCES)
def test_diffusers_draws_the_latents_and_then_the_noise_of_each_step(source):
    noise, generator = HostNoiseStream(source, 42, (8, 6, 4)), host_generator(source, 42)
    for drawn in (noise.first, noise.next((8, 6, 4)), noise.next((8, 6, 4))):
        np.testing.assert_array_equal(drawn, generator.randn(4, 8, 6).transpose(1, 2, 0))


@settings(max_examples=20)
@given(st.sampled_from(HOST_SOURCES), seeds, strengths, st.sampled_from([None, (3, 3), (8, 8), (12, 5)]))
def test_the_noise_of_steps_depends_neither_on_variation_nor_on_size(source, seed, strength, size):
    plain = HostNoiseStream(source, seed, (8, 8, 4))
    other = HostNoiseStream(source, seed, (8, 8, 4), variation_seed=1, variation_strength=strength, resize_from=size)
    np.testing.assert_array_equal(plain.next((8, 8, 4)), other.next((8, 8, 4)))


# --- every source ---


def at_the_start(source, seed, shape, variation_seed=0, strength=0.0, size=None):
    if source == "threefry":
        return varied([seed], [variation_seed], [strength], shape, size)[0]
    noise = HostNoiseStream(
        source, seed, shape, variation_seed=variation_seed, variation_strength=strength, resize_from=size
    )
    return noise.first


SOURCES = ("threefry", *HOST_SOURCES)


@pytest.mark.parametrize("strength", [0.0, 0.4])
@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_standard_normal(source, strength):
    drawn = [at_the_start(source, seed, (64, 64, 4), 1000 + seed, strength) for seed in range(4)]
    values = np.stack(drawn).astype(np.float64).ravel()
    error = 1 / np.sqrt(values.size)
    print(f"{source}: mean {values.mean():.4f}, variance {values.var():.4f}, kurtosis {(values**4).mean():.3f}")
    assert abs(values.mean()) < 5 * error
    # Slerp keeps the length of a column rather than the variance, which is off by its share in the column.
    assert abs(values.var() - 1) < 5 * np.sqrt(2) * error + (0.01 if strength else 0)
    assert abs((values**3).mean()) < 5 * np.sqrt(15) * error
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96) * error + (0.06 if strength else 0)


@pytest.mark.parametrize("source", SOURCES)
def test_a_variation_leads_from_one_seed_to_the_other(source):
    here, there = (at_the_start(source, seed, SHAPE) for seed in (1, 2))
    np.testing.assert_array_equal(at_the_start(source, 1, SHAPE, 2, 0.0), here)
    np.testing.assert_allclose(at_the_start(source, 1, SHAPE, 2, 1.0), there, atol=2e-6)
    distances = [
        np.linalg.norm(at_the_start(source, 1, SHAPE, 2, strength) - here) for strength in np.linspace(0, 1, 6)
    ]
    assert distances == sorted(distances)


@pytest.mark.parametrize("source", SOURCES)
def test_a_variation_on_the_seed_itself_changes_nothing(source):
    here = at_the_start(source, 1, SHAPE)
    np.testing.assert_allclose(at_the_start(source, 1, SHAPE, 1, 0.3), here, atol=1e-6)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("size", [(8, 8), (24, 20), (5, 31)])
def test_a_seed_from_another_size_is_in_the_middle(source, size):
    inner, drawn = at_the_start(source, 3, (*size, 4)), at_the_start(source, 3, SHAPE, size=size)
    assert drawn.shape == SHAPE
    # A pixel in the middle of both, counted from there.
    shifts = [(wanted - given_size) // 2 for wanted, given_size in zip(SHAPE[:2], size, strict=True)]
    for row in (6, 8, 9):
        for column in (6, 8, 9):
            np.testing.assert_array_equal(drawn[row, column], inner[row - shifts[0], column - shifts[1]])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_resizing_takes_every_number_from_one_or_the_other(height, width, rows, columns):
    inner = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns, 1) + 1
    outer = -np.arange(height * width, dtype=np.float32).reshape(height, width, 1) - 1
    drawn = resized(inner, outer, np)
    np.testing.assert_array_equal(drawn, resized(jnp.asarray(inner), jnp.asarray(outer), jnp))
    assert np.all((drawn == outer) | np.isin(drawn, inner))
    taken = drawn[drawn > 0]
    assert len(np.unique(taken)) == len(taken)
    # An odd number is cut by one more, as much at one side as at the other.
    kept = [
        min(size, wanted) - (size > wanted and (size - wanted) % 2)
        for size, wanted in ((rows, height), (columns, width))
    ]
    assert len(taken) == kept[0] * kept[1]


# --- variations on the device ---


@settings(deadline=None, max_examples=5)
@given(st.lists(seeds, min_size=3, max_size=3), strengths, st.permutations(range(3)))
def test_variations_depend_neither_on_place_nor_on_neighbours(three, strength, order):
    chosen = np.array(order)
    strengths = np.float32([0, strength, 1])
    others = [5, 6, 7]

    def draw(which, from_shape):
        pick = lambda values: [values[index] for index in which]  # noqa: E731
        return varied(pick(three), pick(others), pick(strengths), (6, 6, 4), from_shape)

    for from_shape in (None, (4, 8)):
        together = draw(range(3), from_shape)
        np.testing.assert_array_equal(draw(order, from_shape), together[chosen])
        for place in range(3):
            np.testing.assert_array_equal(draw([place], from_shape)[0], together[place])


@settings(deadline=None, max_examples=20)
@given(st.lists(seeds, min_size=2, max_size=2), st.lists(seeds, min_size=2, max_size=2))
def test_without_strength_the_noise_is_the_seeds_to_the_bit(two, others):
    np.testing.assert_array_equal(varied(two, others, [0, 0], SHAPE), start_noise(words_of(*two), SHAPE))
    np.testing.assert_array_equal(varied(two, others, [0, 0], SHAPE, SHAPE[:2]), start_noise(words_of(*two), SHAPE))


def test_the_margin_around_a_smaller_noise_repeats_none_of_it():
    drawn = varied([3], [0], [0], SHAPE, (8, 8))[0]
    assert len(np.unique(drawn)) == drawn.size


@settings(deadline=None)
@given(strengths)
def test_slerp_on_the_device_is_that_on_the_host(strength):
    low, high = (host_generator("torch", seed).randn(8, 6, 4) for seed in (1, 2))
    there = slerp(jnp.asarray(low), jnp.asarray(high), jnp.float32(strength), jnp)
    np.testing.assert_allclose(slerp(low, high, strength, np), there, atol=2e-6)


def test_slerp_of_columns_that_are_the_same_stays_finite():
    low = host_generator("torch", 1).randn(8, 6, 4)
    high = host_generator("torch", 2).randn(8, 6, 4)
    high[:, 2] = low[:, 2]
    drawn = slerp(low, high, 0.5, np)
    np.testing.assert_allclose(drawn[:, 2], low[:, 2], atol=1e-5)
    assert np.isfinite(drawn).all()
