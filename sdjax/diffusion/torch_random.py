"""torch's CPU generator in numpy, so that seeds carry over from diffusers and from A1111's `CPU` source."""

import math

import numpy as np
from jaxtyping import Float32, Float64

from sdjax.diffusion import elementary


class TorchGenerator:
    """`torch.Generator("cpu").manual_seed(seed)`, as far as `torch.randn` of float32 goes.

    The twister is numpy's. The rest is written after ATen (`native/cpu/DistributionTemplates.h`): 16 values or more are
    made of 24-bit uniforms, by Box and Muller's formula in float32 over blocks of 16 (8 radii, then 8 angles), and a
    count that 16 does not divide has its last 16 values drawn once more. Fewer are made in float64 of 53-bit uniforms,
    two at a time; the second of a pair is kept for the next such draw, whatever is drawn between. Agrees with torch to
    the last bit or two of float32, and is the same on every machine, which torch's own is not.
    """

    _BLOCK = 16

    def __init__(self, seed: int) -> None:
        # torch seeds its twister with the low 32 bits alone.
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)._bit_generator
        self._kept: float | None = None

    def randn(self, *shape: int) -> Float32[np.ndarray, "..."]:
        """Standard normal numbers, as `torch.randn(*shape, generator=...)` gives them."""
        count = int(np.prod(shape))
        draw = self._few if count < self._BLOCK else self._many
        return draw(count).reshape(shape)

    def _many(self, count: int) -> Float32[np.ndarray, " n"]:
        rest = count % self._BLOCK
        uniforms = self._uniforms(count)
        values = np.empty(count, np.float32)
        values[: count - rest] = _box_muller(uniforms[: count - rest].reshape(-1, self._BLOCK)).ravel()
        if rest:
            values[-self._BLOCK :] = _box_muller(self._uniforms(self._BLOCK).reshape(1, self._BLOCK)).ravel()
        return values

    def _uniforms(self, count: int) -> Float32[np.ndarray, " n"]:
        words = self._twister.random_raw(count)
        return ((words & 0xFFFFFF) * 2.0**-24).astype(np.float32)

    def _few(self, count: int) -> Float32[np.ndarray, " n"]:
        return np.array([self._one() for _ in range(count)], np.float32)

    def _one(self) -> float:
        if self._kept is not None:
            value, self._kept = self._kept, None
            return value
        angle, radius = self._doubles()
        sine, cosine = elementary.sin_cos(float(2 * np.pi * angle))
        radius = math.sqrt(-2 * elementary.log1p(float(-radius)))
        self._kept = radius * sine
        return radius * cosine

    def _doubles(self) -> Float64[np.ndarray, " 2"]:
        words = self._twister.random_raw(4).astype(np.uint64)
        high, low = words[::2], words[1::2]
        return (((high << np.uint64(32)) | low) & np.uint64(2**53 - 1)) * 2.0**-53


def _box_muller(uniforms: Float32[np.ndarray, "k 16"]) -> Float32[np.ndarray, "k 16"]:
    one, two = uniforms[:, :8], uniforms[:, 8:]
    logarithm = elementary.log((np.float32(1) - one).astype(np.float64)).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * logarithm)
    sine, cosine = elementary.sin_cos((np.float32(2 * np.pi) * two).astype(np.float64))
    return np.concatenate([radius * cosine.astype(np.float32), radius * sine.astype(np.float32)], axis=1)
