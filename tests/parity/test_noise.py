"""Live comparison of noise with torch's CPU generator and torchsde."""

import random

import numpy as np
import pytest

from sdjax.diffusion.brownian import TorchBrownianTree
from sdjax.diffusion.torch_random import TorchGenerator
from tests.golden import noise as golden

pytestmark = pytest.mark.parity

reference = pytest.importorskip("tests.golden.noise_reference", reason="needs torch: make parity", exc_type=ImportError)


@pytest.mark.parametrize("seed", golden.SEEDS)
def test_draws_of_any_size_in_any_order(seed: int) -> None:
    chooser = random.Random(seed)
    counts = tuple(chooser.choice([0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 1000, 4096]) for _ in range(50))
    generator = TorchGenerator(seed)
    given = np.concatenate([generator.randn(count) for count in counts])
    wanted = reference.torch_randn(seed, counts)
    print(f"\n{seed}: at most {np.abs(given - wanted).max():.1e}, {(given == wanted).mean():.1%} to the bit")
    np.testing.assert_allclose(given, wanted, rtol=0, atol=6e-7)


@pytest.mark.parametrize("seed", golden.SEEDS)
def test_trees(seed: int) -> None:
    channels, height, width = golden.TREE_SHAPE
    tree = TorchBrownianTree(golden.SIGMA_MIN, golden.SIGMA_MAX, seed, (height, width, channels))
    given = np.stack([tree(*query) for query in golden.queries()]).transpose(0, 3, 1, 2)
    wanted = reference.tree(seed)
    print(f"\n{seed}: at most {np.abs(given - wanted).max():.1e}")
    np.testing.assert_allclose(given, wanted, rtol=0, atol=2e-6)
