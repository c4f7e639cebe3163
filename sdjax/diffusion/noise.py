"""A seed -> the noise of one image.

Two sources. `threefry` is JAX's counter-based generator, drawn on the device. `torch` gives what
`torch.Generator("cpu").manual_seed(seed)` gives, so that seeds carry over from diffusers; it is drawn on the host.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt32

SOURCES = ("threefry", "torch")
MAX_SEED = 2**64 - 1
# Fewer numbers torch's generator draws one by one, in another way.
TORCH_LEAST = 16

# What a number drawn from a seed is for: folded into the key, so that no two uses share bits.
_FOR_START, _FOR_STEPS = 0, 1


def seed_words(seed: int) -> UInt32[np.ndarray, " 2"]:
    """The two halves of a 64-bit seed, high word first: the key data of a threefry key."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def start_noise(words: UInt32[Array, "b 2"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal numbers of `shape` for each image, from its seed alone."""
    return _draw(words, (_FOR_START,), shape)


def step_noise(words: UInt32[Array, "b 2"], step: Array | int, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """The same for one step of a stochastic sampler."""
    return _draw(words, (_FOR_STEPS, step), shape)


def _draw(words: UInt32[Array, "b 2"], path: tuple[Array | int, ...], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    def one(pair: UInt32[Array, " 2"]) -> Float[Array, "..."]:
        key = jax.random.wrap_key_data(pair, impl="threefry2x32")
        for part in path:
            key = jax.random.fold_in(key, part)
        return jax.random.normal(key, shape, jnp.float32)

    return jax.vmap(one)(words)


class TorchGenerator:
    """torch's CPU generator, as far as `torch.randn` of float32 goes.

    The twister is numpy's; the rest is written after ATen's `normal_fill`: 24-bit uniforms, turned by Box and
    Muller's formula in blocks of 16 (8 radii, then 8 angles). A count that 16 does not divide has its last 16
    values drawn once more. Agrees with torch to the last bit or two of float32.
    """

    _BLOCK = 16

    def __init__(self, seed: int) -> None:
        # torch seeds its twister with the low 32 bits alone.
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)._bit_generator

    def _uniforms(self, count: int) -> Float32[np.ndarray, " n"]:
        words = self._twister.random_raw(count)
        return ((words & 0xFFFFFF) * 2.0**-24).astype(np.float32)

    @staticmethod
    def _box_muller(uniforms: Float32[np.ndarray, "k 16"]) -> Float32[np.ndarray, "k 16"]:
        one, two = uniforms[:, :8], uniforms[:, 8:]
        radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - one))
        angle = np.float32(2 * np.pi) * two
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    def randn(self, *shape: int) -> Float32[np.ndarray, "..."]:
        """Standard normal numbers, as `torch.randn(*shape, generator=...)` gives them.

        Raises:
          ValueError: below 16 numbers, where torch takes another way.
        """
        count = int(np.prod(shape))
        if count < TORCH_LEAST:
            raise ValueError(f"torch draws {count} numbers, fewer than {TORCH_LEAST}, in another way; not supported")
        uniforms = self._uniforms(count)
        rest = count % self._BLOCK
        whole = count - rest
        values = np.empty(count, np.float32)
        values[:whole] = self._box_muller(uniforms[:whole].reshape(-1, self._BLOCK)).ravel()
        if rest:
            last = self._uniforms(self._BLOCK).reshape(1, self._BLOCK)
            values[-self._BLOCK :] = self._box_muller(last).ravel()
        return values.reshape(shape)


def torch_noise(
    seed: int, height: int, width: int, channels: int, steps: int
) -> tuple[Float32[np.ndarray, "h w c"], Float32[np.ndarray, "s h w c"]]:
    """What diffusers draws for one image from its generator: the first latents, then `steps` times the step noise."""
    generator = TorchGenerator(seed)
    drawn = [generator.randn(channels, height, width).transpose(1, 2, 0) for _ in range(1 + steps)]
    rest = np.stack(drawn[1:]) if steps else np.zeros((0, height, width, channels), np.float32)
    return drawn[0], rest
