import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjax.diffusion.torch_random import TorchGenerator
from tests.golden import noise as golden

# torch 2.13.0's torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed)), under "seed shape"; every
# 97th value of 4x64x64; under "seed after" what 23 and then 4x8x8 give once 4x8x8 have been drawn.
LARGE = dict(np.load(io.BytesIO(Path(__file__).with_name("torch_randn.npz").read_bytes())))
# Small draws and large ones in turn.
MIXED = golden.recorded("few")
# A bit or two of float32.
CLOSE = {"rtol": 0, "atol": 6e-7}


def large(name):
    seed, what = name.split()
    generator = TorchGenerator(int(seed))
    if what == "after":
        generator.randn(4, 8, 8)
        return np.concatenate([generator.randn(23), generator.randn(4, 8, 8).ravel()])
    values = generator.randn(*map(int, what.split("x"))).ravel()
    return values[::97] if what == "4x64x64" else values


def mixed(seed):
    generator = TorchGenerator(int(seed))
    return np.concatenate([generator.randn(count) for count in golden.FEW])


@pytest.mark.parametrize("name", LARGE)
def test_a_seed_gives_what_torch_gives(name):
    np.testing.assert_allclose(large(name), LARGE[name], **CLOSE)


@pytest.mark.parametrize("seed", MIXED)
def test_draws_below_16_numbers_and_those_after_them_are_torchs_too(seed):
    np.testing.assert_allclose(mixed(seed), MIXED[seed], **CLOSE)


def test_most_values_are_torchs_to_the_bit():
    same = [large(name) == LARGE[name] for name in LARGE] + [mixed(seed) == MIXED[seed] for seed in MIXED]
    same = np.concatenate(same)
    print(f"{same.mean():.1%} of {same.size} values to the bit")
    assert same.mean() > 0.8


def test_only_the_low_32_bits_of_a_seed_count_as_in_torch():
    for low, high in ((0, 2**32), (1, 2**32 + 1), (2**32 - 1, 2**64 - 1)):
        np.testing.assert_array_equal(TorchGenerator(low).randn(4, 8, 8), TorchGenerator(high).randn(4, 8, 8))
        np.testing.assert_array_equal(LARGE[f"{low} 4x8x8"], LARGE[f"{high} 4x8x8"])


@given(st.lists(st.integers(0, 15), max_size=6))
def test_small_draws_cut_one_stream_wherever(counts):
    in_turn, at_once = TorchGenerator(7), TorchGenerator(7)
    parts = [in_turn.randn(count) for count in counts]
    alone = [at_once.randn(1) for _ in range(sum(counts))]
    np.testing.assert_array_equal(np.concatenate([*parts, np.zeros(0)]), np.concatenate([*alone, np.zeros(0)]))


def test_shapes_are_filled_in_order():
    np.testing.assert_array_equal(TorchGenerator(1).randn(2, 3, 4).ravel(), TorchGenerator(1).randn(24))
    assert TorchGenerator(1).randn(0, 3).shape == (0, 3)
