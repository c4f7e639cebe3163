"""Brownian paths over sigma, for stochastic samplers whose steps have to fit together.

A path is a function of the seed and of sigma alone, so what is drawn for a step depends neither on the order of the
steps nor on their number: more steps give more of the same path, and an image that goes to where they lead. Two
kinds: `increment` on the device, and `TorchBrownianTree` with the numbers of k-diffusion's noise sampler.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Key, UInt32

from sdjax.diffusion import noise

# --- on the device ---

# Bits of 2.0 as a float32; those of every smaller float are smaller, and 0.0 has none. So this is the number of
# halvings after which an interval of floats is one float.
_TOP = 0x40000000
_HALVINGS = 30
# Sigmas are scaled to below 2.0, exactly: they may be up to 16384.
_SCALE = 2.0**-13


def increment(
    seed_words: UInt32[Array, "b 2"], start: Float[Array, " b"], end: Float[Array, " b"], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
    """The increments of Brownian motions between two sigmas, standardised: (W(end) - W(start)) / sqrt(|end - start|).

    A virtual Brownian tree (Li, Wong, Chen and Duvenaud: "Scalable Gradients for Stochastic Differential Equations",
    2020, algorithm 3): W is drawn at 0 and at the top; the value in the middle of an interval given those at its ends
    is normal, so halving after halving leads to W(sigma), the same way whatever is asked besides. Here an interval is
    one of float32 numbers, and halved in the middle of these, which is nearly the middle of the logarithm. After 30
    halvings one number is left: W is exact at every float32, neither cut off nor interpolated.

    Signs are k-diffusion's (`BrownianTreeNoiseSampler`): sigma falls while sampling, so `end` is less than `start`.

    Args:
      seed_words: of the seeds, from `noise.to_seed_words`.
      start: sigma before the step, from 0 to 16384.
      end: sigma after the step, likewise; where it is that before the step the increment is 0.
      shape: of one image's noise.

    Returns:
      Standard normal numbers, independent for steps that do not overlap.
    """

    always = jnp.ones(seed_words.shape[0], bool)
    return step_noise(seed_words, 0, always, jnp.stack([start, end], axis=1), shape)


def step_noise(
    seed_words: UInt32[Array, "b 2"],
    place: Array | int,
    brownian: Bool[Array, " b"],
    span: Float[Array, "b 2"],
    shape: tuple[int, ...],
) -> Float[Array, "b ..."]:
    """The noise of one step, of whichever kind each image wants: an increment, or white noise.

    Both in one loop, whose first draw is the white noise or W at the top: XLA takes longest to compile what draws.

    Args:
      seed_words: of the seeds.
      place: of the step, for white noise: as `noise.step_noise`.
      brownian: whether an image wants an increment.
      span: sigma before and after, for increments.
      shape: of one image's noise.
    """
    times = (span * _SCALE).T  # before and after, each by image
    paths = jax.vmap(noise.path_key)(seed_words)
    steps = jax.vmap(noise.steps_key)(seed_words)
    keys = jax.tree.map(lambda p, s: jnp.where(brownian, p, s), paths, steps)
    wanted = _bits(times)
    wide = (slice(None), slice(None), *(None,) * len(shape))

    def normal(points: Int32[Array, "2 b"]) -> Float[Array, "2 b ..."]:
        # Every number is the middle of one interval at most, so its bits name the draw.
        def one(key: Key[Array, ""], point: Int32[Array, ""]) -> Float[Array, "..."]:
            return noise.normal(jax.random.fold_in(key, point), shape)

        return jax.vmap(jax.vmap(one), (None, 0))(keys, points)

    def halve(carry: tuple[Array, _Interval, Array]) -> tuple[Array, _Interval, Array]:
        turn, (low, high, at_low, at_high), white = carry
        first = turn == 0
        middle = low + (high - low) // 2
        begin = jnp.where(brownian, jnp.int32(_TOP), jnp.asarray(place, jnp.int32))[None]
        drawn = normal(jnp.where(first, jnp.broadcast_to(begin, middle.shape), middle))
        from_low, to_high = _float(middle) - _float(low), _float(high) - _float(middle)
        share = from_low / (_float(high) - _float(low))
        at_middle = at_low + share[wide] * (at_high - at_low) + jnp.sqrt(to_high * share)[wide] * drawn
        right = (wanted >= middle) & ~first
        left = ~right & ~first
        halved = _Interval(
            jnp.where(right, middle, low),
            jnp.where(left, middle, high),
            jnp.where(right[wide], at_middle, at_low),
            jnp.where(left[wide], at_middle, jnp.where(first, math.sqrt(2.0) * drawn, at_high)),
        )
        return turn + 1, halved, jnp.where(first, drawn[0], white)

    size = (2, seed_words.shape[0])
    zeros = jnp.zeros((*size, *shape), jnp.float32)
    whole = _Interval(jnp.zeros(size, jnp.int32), jnp.full(size, _TOP, jnp.int32), zeros, zeros)
    turns = jnp.where(jnp.any(brownian), _HALVINGS + 1, 1)
    begin = (jnp.zeros((), jnp.int32), whole, zeros[0])
    _, found, white = jax.lax.while_loop(lambda carry: carry[0] < turns, halve, begin)
    before, after = found.at_low
    length = jnp.abs(times[1] - times[0])
    scale = jnp.where(length > 0, jax.lax.rsqrt(jnp.where(length > 0, length, 1.0)), 0.0)
    return jnp.where(brownian[wide[1:]], (after - before) * scale[wide[1:]], white)


class _Interval(NamedTuple):
    """Of float32 numbers, by their bits, with W at its ends; for the time before a step and after, and each image."""

    low: Int32[Array, "2 b"]
    high: Int32[Array, "2 b"]
    at_low: Float[Array, "2 b ..."]
    at_high: Float[Array, "2 b ..."]


def _bits(times: Float[Array, "..."]) -> Int32[Array, "..."]:
    return jax.lax.bitcast_convert_type(times.astype(jnp.float32), jnp.int32)


def _float(bits: Int32[Array, "..."]) -> Float[Array, "..."]:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


# --- on the host, as torchsde has it ---

# `tol` and `pool_size` of torchsde.BrownianTree.
_DIGITS = 6
_POOL_SIZE = 24
# Intervals kept for the next steps, more than two paths from the top to the bottom.
_KEPT = 128


class _Node(NamedTuple):
    """An interval of torchsde's tree: of the `place`-th of its depth, from the left."""

    start: float
    end: float
    place: int
    depth: int
    increment: Float32[np.ndarray, "h w c"]


class TorchBrownianTree:
    """k-diffusion's `BrownianTreeNoiseSampler` for one image, with A1111's seed for it (the image's own).

    Follows torchsde 0.2.6 (`BrownianTree`, which is `BrownianInterval` with `halfway_tree`): an interval is halved in
    time, times are rounded to 6 digits, and each halving has a generator of its own, seeded by numpy's `SeedSequence`
    from the image's seed and the place in the tree. A1111 puts its own source of noise in torchsde; so does this.
    Agrees with torchsde to a few of the last bits.
    """

    def __init__(
        self, sigma_min: float, sigma_max: float, seed: int, shape: tuple[int, int, int], source: str = "torch"
    ) -> None:
        """Draws the increment over all sigmas.

        Args:
          sigma_min: the least sigma above 0.
          sigma_max: the largest; what is asked for beyond either ends there.
          seed: from 0 to 2^64 - 1.
          shape: (height, width, channels) of the latents.
          source: "torch" or "philox".
        """
        low, high = float(np.float32(sigma_min)), float(np.float32(sigma_max))
        self._entropy, self._shape, self._source = seed, shape, source
        whole = self._randn(self._seed_of(())) * np.float32(math.sqrt(high - low))
        self._top = _Node(round(low, _DIGITS), round(high, _DIGITS), 0, 0, whole)
        self._halves: dict[tuple[int, int], tuple[_Node, _Node]] = {}

    def __call__(self, sigma: float | np.float32, sigma_next: float | np.float32) -> Float32[np.ndarray, "h w c"]:
        """(W(sigma_next) - W(sigma)) / sqrt(|sigma_next - sigma|).

        W is read at the sigmas as float32 rounded to 6 digits, so the last bit of a sigma can show in the third digit
        of the result. It is 0 where both are rounded to one time, of which torchsde makes an endless search.
        """
        start, end = np.float32(sigma), np.float32(sigma_next)
        low, high = (self._time(time) for time in sorted((start, end)))
        parts = self._parts(self._top, low, high) if low < high else iter(())
        sign = np.float32(1 if start < end else -1)
        return sign * sum(parts, np.zeros(self._shape, np.float32)) / np.sqrt(np.abs(end - start))

    def _time(self, sigma: np.float32) -> float:
        return round(min(max(float(sigma), self._top.start), self._top.end), _DIGITS)

    def _parts(self, node: _Node, start: float, end: float) -> Iterator[Float32[np.ndarray, "h w c"]]:
        """The increments of the intervals that make up one within `node`, from the left."""
        if (start, end) == (node.start, node.end):
            yield node.increment
            return
        left, right = self._halved(node)
        if start < left.end:
            yield from self._parts(left, start, min(end, left.end))
        if end > left.end:
            yield from self._parts(right, max(start, left.end), end)

    def _halved(self, node: _Node) -> tuple[_Node, _Node]:
        name = (node.place, node.depth)
        halves = self._halves.pop(name) if name in self._halves else self._halve(node)
        # The newest last, the oldest goes.
        self._halves[name] = halves
        if len(self._halves) > _KEPT:
            del self._halves[next(iter(self._halves))]
        return halves

    def _halve(self, node: _Node) -> tuple[_Node, _Node]:
        middle = round(0.5 * (node.end + node.start), _DIGITS)
        share = 1 / (node.end - node.start)
        mean = np.float32(middle - node.start) * node.increment * np.float32(share)
        deviation = math.sqrt((middle - node.start) * (node.end - middle) * share)
        first = mean + np.float32(deviation) * self._randn(self._seed_of((node.place, node.depth)))
        return (
            _Node(node.start, middle, 2 * node.place, node.depth + 1, first),
            _Node(middle, node.end, 2 * node.place + 1, node.depth + 1, node.increment - first),
        )

    def _seed_of(self, name: tuple[int, ...]) -> int:
        """A halving's seed; the whole interval's has no name."""
        sequence = np.random.SeedSequence(self._entropy, spawn_key=name, pool_size=_POOL_SIZE)
        return int(sequence.generate_state(1)[0])

    def _randn(self, seed: int) -> Float32[np.ndarray, "h w c"]:
        return noise.host_randn(noise.host_generator(self._source, seed), self._shape)
