import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion.noise import MAX_SEED, TorchGenerator, seed_words, start_noise, step_noise, torch_noise

# torch 2.13.0's torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed)), under "seed shape"; every
# 97th value of 4x64x64; under "seed after" what 23 and then 4x8x8 give once 4x8x8 have been drawn.
RECORDED = dict(np.load(io.BytesIO(Path(__file__).with_name("torch_randn.npz").read_bytes())))
# A bit or two of float32.
CLOSE = {"rtol": 0, "atol": 6e-7}

SHAPE = (16, 16, 4)
seeds = st.integers(0, MAX_SEED)


def words_of(*seeds):
    return jnp.asarray(np.stack([seed_words(seed) for seed in seeds]))


# --- torch's generator ---


def ours(name):
    seed, what = name.split()
    generator = TorchGenerator(int(seed))
    if what == "after":
        generator.randn(4, 8, 8)
        return np.concatenate([generator.randn(23), generator.randn(4, 8, 8).ravel()])
    values = generator.randn(*map(int, what.split("x"))).ravel()
    return values[::97] if what == "4x64x64" else values


@pytest.mark.parametrize("name", RECORDED)
def test_a_seed_gives_what_torch_gives(name):
    np.testing.assert_allclose(ours(name), RECORDED[name], **CLOSE)


def test_most_values_are_torchs_to_the_bit():
    same = np.concatenate([ours(name) == RECORDED[name] for name in RECORDED])
    print(f"{same.mean():.1%} of {same.size} values to the bit")
    assert same.mean() > 0.8


def test_only_the_low_32_bits_of_a_seed_count_as_in_torch():
    for low, high in ((0, 2**32), (1, 2**32 + 1), (2**32 - 1, MAX_SEED)):
        np.testing.assert_array_equal(TorchGenerator(low).randn(4, 8, 8), TorchGenerator(high).randn(4, 8, 8))
        np.testing.assert_array_equal(RECORDED[f"{low} 4x8x8"], RECORDED[f"{high} 4x8x8"])


def test_fewer_than_16_numbers_are_refused_since_torch_draws_them_otherwise():
    with pytest.raises(ValueError, match="torch draws 15 numbers, fewer than 16"):
        TorchGenerator(0).randn(3, 5)


def test_diffusers_draws_the_latents_and_then_the_noise_of_each_step():
    first, rest = torch_noise(42, 8, 8, 4, steps=2)
    assert first.shape == (8, 8, 4) and rest.shape == (2, 8, 8, 4)
    generator = TorchGenerator(42)
    for drawn in (first, *rest):
        np.testing.assert_array_equal(drawn.transpose(2, 0, 1), generator.randn(4, 8, 8))
    np.testing.assert_allclose(first.transpose(2, 0, 1).ravel(), RECORDED["42 4x8x8"], **CLOSE)


def test_without_steps_only_the_latents_are_drawn():
    first, rest = torch_noise(42, 8, 8, 4, steps=0)
    assert rest.shape == (0, 8, 8, 4)
    np.testing.assert_array_equal(first, torch_noise(42, 8, 8, 4, steps=3)[0])


# --- threefry ---


@given(seeds)
def test_both_halves_of_a_seed_are_in_its_words(seed):
    high, low = (int(word) for word in seed_words(seed))
    assert (high << 32) + low == seed


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_a_seed_is_jaxs_key_of_that_seed(seed):
    # For anyone who wants to draw the same noise with JAX alone.
    np.testing.assert_array_equal(jax.random.key_data(jax.random.key(seed, impl="threefry2x32")), seed_words(seed))
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


@pytest.mark.parametrize("source", ["threefry", "torch"])
def test_noise_is_standard_normal(source):
    if source == "threefry":
        values = np.asarray(start_noise(words_of(*range(4)), (64, 64, 4)), np.float64).ravel()
    else:
        values = np.stack([torch_noise(seed, 64, 64, 4, 0)[0] for seed in range(4)]).astype(np.float64).ravel()
    error = 1 / np.sqrt(values.size)
    print(f"{source}: mean {values.mean():.4f}, variance {values.var():.4f}, kurtosis {(values**4).mean():.3f}")
    assert abs(values.mean()) < 5 * error
    assert abs(values.var() - 1) < 5 * np.sqrt(2) * error
    assert abs((values**3).mean()) < 5 * np.sqrt(15) * error
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96) * error
