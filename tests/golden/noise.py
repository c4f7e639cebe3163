"""Draws of noise that are compared with what torch, torchsde, CUDA and A1111 give.

Recorded in noise.npz by `tests.golden.noise_reference`, which says how.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("noise.npz")

# Seeds on both sides of 32 bits.
SEEDS = (0, 42, 2**32 - 1, 2**32, 2**32 + 1, 2**64 - 1)
# Counts of successive draws from one generator, fewer than 16 among them.
FEW = (1, 3, 16, 2, 15, 23, 1, 5, 64, 4)
# (draws before, first value, values) of a draw.
CUDA_DRAWS = ((0, 0, 16), (3, 0, 16), (1, 16368, 16))

# (shape of the latents, strength, latents from which the seed comes), channels first, as A1111 has them.
IMAGES = {
    "plain": ((4, 8, 8), 0.0, None),
    "variation": ((4, 8, 8), 0.3, None),
    "whole variation": ((4, 8, 8), 1.0, None),
    "from smaller": ((4, 9, 10), 0.0, (6, 5)),
    "from larger": ((4, 7, 8), 0.0, (10, 13)),
    "wider and lower": ((4, 6, 12), 0.25, (8, 8)),
}
IMAGE_SEED, VARIATION_SEED = 42, 1234

# The latents on which torchsde's trees are drawn, channels first, and sigmas of 10 steps.
TREE_SHAPE = (4, 4, 4)
SIGMA_MAX, SIGMA_MIN = 14.614643, 0.0291672
TREES = {"torch": (0, 42, 2**32 + 1, 2**64 - 1), "philox": (42,)}


def sigmas() -> np.ndarray:
    """Karras' schedule, in float32 as it is in k-diffusion."""
    ramp = np.linspace(0, 1, 10)
    high, low = SIGMA_MAX ** (1 / 7), SIGMA_MIN ** (1 / 7)
    return ((high + ramp * (low - high)) ** 7).astype(np.float32)


def queries() -> list[tuple[np.float32, np.float32]]:
    """What DPM++ 2M SDE, 3M SDE and SDE ask for, in this order; the last of them half a step and then the whole."""
    steps = list(zip(sigmas(), sigmas()[1:], strict=False))
    halves = [(start, np.float32(np.sqrt(np.float64(start) * end))) for start, end in steps]
    return steps + [query for pair in zip(halves, steps, strict=True) for query in pair]


def recorded(kind: str) -> dict[str, np.ndarray]:
    """References of one kind ("few", "cuda", "image" or "tree"), by what follows it in their names."""
    with np.load(FILE) as arrays:
        return {name.split(" ", 1)[1]: arrays[name] for name in arrays.files if name.startswith(f"{kind} ")}
