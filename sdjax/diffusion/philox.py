"""CUDA's generator in numpy: what `torch.randn(..., device="cuda")` and A1111's `NV` source give.

Philox4x32-10 is counter-based (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011;
https://doi.org/10.1145/2063384.2063405).
"""

import numpy as np
from jaxtyping import Float32, UInt32

from sdjax.diffusion import elementary

# Section 4.3 of the paper: factors of the rounds, and what is added to the key between them.
_FACTORS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# Of cuRAND's `curand_normal.h`; both products are rounded to float32 there.
_2POW32_INV = float(np.float32(2.3283064e-10))
_2POW32_INV_2PI = float(np.float32(np.float32(2.3283064e-10) * np.float32(6.2831855)))


def philox4x32(counter: UInt32[np.ndarray, "4 n"], key: tuple[int, int]) -> UInt32[np.ndarray, "4 n"]:
    """Ten rounds of Philox4x32 over `n` counters; words are in the order of the paper, the lowest first."""
    one, two, three, four = counter
    low, high = key
    for _ in range(_ROUNDS):
        first, second = one * _FACTORS[0], three * _FACTORS[1]
        one, two = _high(second) ^ two ^ np.uint32(low), _low(second)
        three, four = _high(first) ^ four ^ np.uint32(high), _low(first)
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([one, two, three, four])


def _high(product: np.ndarray) -> UInt32[np.ndarray, " n"]:
    return (product >> np.uint64(32)).astype(np.uint32)


def _low(product: np.ndarray) -> UInt32[np.ndarray, " n"]:
    return product.astype(np.uint32)


class PhiloxGenerator:
    """`torch.Generator("cuda").manual_seed(seed)`, as far as `torch.randn` of float32 goes.

    Value i of a draw belongs to thread i: the seed is the key, the thread the high half of the counter, the number of
    draws before the low half; of the four words that come of it torch uses two, for one value. So it is as long as a
    draw needs no more threads than the device runs at once (tens of thousands and more, by device); beyond, devices
    differ from each other too. This follows A1111's `NV`, which knows no device.

    Computed in float64 and rounded once, as in A1111. cuRAND computes in float32, within 1e-6 of this for 999 values of
    1000 and 1e-5 for nearly all others (measured with NVIDIA's own code, see `tests/golden/noise_reference.py`).
    """

    def __init__(self, seed: int) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32)
        self._draws = 0

    def randn(self, *shape: int) -> Float32[np.ndarray, "..."]:
        """Standard normal numbers, as `torch.randn(*shape, generator=..., device="cuda")` gives them."""
        count = int(np.prod(shape))
        counter = np.zeros((4, count), np.uint32)
        counter[0] = self._draws
        counter[2] = np.arange(count, dtype=np.uint32)
        self._draws += 1
        one, two, _, _ = philox4x32(counter, self._key)
        # Box and Muller's formula; the halves keep the logarithm off 0.
        radius = np.sqrt(-2 * elementary.log(one * _2POW32_INV + _2POW32_INV / 2))
        angle = two * _2POW32_INV_2PI + _2POW32_INV_2PI / 2
        return (radius * elementary.sin(angle)).astype(np.float32).reshape(shape)
