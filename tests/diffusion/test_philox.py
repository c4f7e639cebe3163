import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjax.diffusion.philox import PhiloxGenerator, philox4x32
from tests.golden import noise as golden

# Random123's `kat_vectors`, the lines "philox4x32 10": counter, key, what comes of them.
KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1
"""

# What people had from `torch.randn(shape, device="cuda")` on GPUs and published: (seed, shape, {index: value}).
PUBLISHED = {
    # The docstring of A1111's modules/rng_philox.py.
    "A1111": (
        0,
        (3, 4),
        {
            (0, 0): -0.92466259,
            (0, 1): -0.42534415,
            (0, 2): -2.6438457,
            (0, 3): 0.14518388,
            (1, 0): -0.12086647,
            (1, 1): -0.57972564,
            (1, 2): -0.62285122,
            (1, 3): -0.32838709,
            (2, 0): -1.07454231,
            (2, 1): -0.36314407,
            (2, 2): -1.67105067,
            (2, 3): 2.26550497,
        },
    ),
    # https://github.com/pytorch/pytorch/issues/79496
    "pytorch 79496": (10, (3,), {0: -0.1029, 1: 1.6810, 2: -0.2708}),
    # https://github.com/pytorch/pytorch/issues/158398, the rows on which its two machines agree
    "pytorch 158398": (
        42,
        (64, 2048),
        {
            (0, 0): 0.1940,
            (0, 1): 2.1614,
            (0, 2): -0.1721,
            (0, 2045): 1.4540,
            (0, 2046): -2.7733,
            (0, 2047): -0.8932,
            (1, 0): -0.4574,
            (1, 1): 0.8063,
            (1, 2): 0.1580,
            (1, 2045): 0.1124,
            (1, 2046): 0.2769,
            (1, 2047): -1.2535,
            (2, 0): 1.1346,
            (2, 1): -0.6329,
            (2, 2): -0.9147,
            (2, 2045): -1.0001,
            (2, 2046): -1.1552,
            (2, 2047): -0.6955,
        },
    ),
    # https://github.com/pytorch/pytorch/issues/62467, the RTX A6000
    "pytorch 62467": (43, (3, 128, 128), {(0, 0, 0): 1.9983, (1, 0, 0): 0.8704, (2, 0, 0): 2.1127}),
    # https://github.com/pytorch/pytorch/issues/143086
    "pytorch 143086": (1, (3,), {0: -0.2963, 1: 2.6764, 2: -0.1408}),
}

RECORDED = golden.recorded("cuda")


@pytest.mark.parametrize("line", KNOWN_ANSWERS.split("\n")[1:-1])
def test_known_answers_of_random123(line):
    words = [int(word, 16) for word in line.split()]
    counter, key, wanted = words[:4], words[4:6], words[6:]
    given_words = philox4x32(np.array(counter, np.uint32)[:, None], (key[0], key[1]))
    assert given_words[:, 0].tolist() == wanted


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_seed_gives_what_was_published_of_gpus(name):
    seed, shape, wanted = PUBLISHED[name]
    values = PhiloxGenerator(seed).randn(*shape)
    digits = 1e-6 if name == "A1111" else 5.1e-5
    for index, value in wanted.items():
        assert values[index] == pytest.approx(value, abs=digits)


@pytest.mark.parametrize("name", RECORDED)
def test_a_seed_gives_what_nvidias_code_gives(name):
    seed, draws, first = map(int, name.split())
    generator = PhiloxGenerator(seed)
    for _ in range(draws):
        generator.randn(5)
    values = generator.randn(first + 16)[first:]
    # cuRAND computes in float32.
    np.testing.assert_allclose(values, RECORDED[name], rtol=0, atol=2e-6)


@given(st.integers(0, 2**64 - 1), st.integers(1, 40), st.integers(0, 40))
def test_a_value_depends_on_seed_draw_and_place_alone(seed, count, more):
    short, long = PhiloxGenerator(seed), PhiloxGenerator(seed)
    for _ in range(2):
        np.testing.assert_array_equal(short.randn(count), long.randn(count + more)[:count])


def test_all_64_bits_of_a_seed_count():
    seeds = (0, 1, 2**31, 2**32, 2**32 + 1, 2**63, 2**64 - 1)
    draws = np.stack([PhiloxGenerator(seed).randn(1000) for seed in seeds])
    assert np.abs(np.corrcoef(draws) - np.eye(len(seeds))).max() < 5 / np.sqrt(1000)


def test_shapes_are_filled_in_order():
    np.testing.assert_array_equal(PhiloxGenerator(1).randn(2, 3, 4).ravel(), PhiloxGenerator(1).randn(24))
