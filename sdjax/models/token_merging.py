"""Token merging: self-attention over fewer tokens (Bolya and Hoffman 2023, arXiv:2303.17604; their code is tomesd).

Of each window of two by two tokens one is a destination. Of all other tokens, those that are most like a destination
are averaged with it before self-attention, and get after it what it got. As with tomesd's defaults, and as in A1111,
this is done only at the UNet's largest feature maps, and neither before cross-attention nor feed-forward layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdjax.models.attention import Attention, SpatialTransformer, TransformerBlock

# Tokens along each side of a window.
_WINDOW = 2
# Tokens of a window; and the largest ratio: all but one of them.
PLACES = _WINDOW**2
# The least rows and columns of feature maps: those of one window.
LEAST_SIDE = _WINDOW
MAX_RATIO = 1 - 1 / PLACES
# The name of a transformer block's self-attention.
_SELF_ATTENTION = "attn1"
# Norms below are taken for this: such tokens are like none.
_LEAST_NORM = 1e-12

# (number of the layer, rows and columns of windows) -> the places of the destinations in their windows, of each image.
Choose = Callable[[int, tuple[int, int]], Int[Array, "b y x"]]


class Merge(NamedTuple):
    """Which tokens are averaged: u stay as they are, r are averaged with one of d destinations.

    single, merged, destinations: their indices among the tokens.
    into: the destination of each that is merged, from 0 to d - 1.
    """

    single: Int[Array, "q u"]
    merged: Int[Array, "q r"]
    destinations: Int[Array, "q d"]
    into: Int[Array, "q r"]

    def apply(self, x: Float[Array, "q n c"]) -> Float[Array, "q m c"]:
        """The tokens that stay, then the destinations, averaged with what is merged into them."""
        single, merged, destinations = (_rows(x, each) for each in (self.single, self.merged, self.destinations))
        places = jnp.arange(destinations.shape[1])[None, :, None]
        # A product, as a scatter adds up in any order on some devices.
        shares = (self.into[:, None] == places).astype(x.dtype)
        total = destinations.astype(jnp.float32) + jnp.matmul(shares, merged, preferred_element_type=jnp.float32)
        counts = 1 + shares.sum(axis=-1, dtype=jnp.float32)[..., None]
        return jnp.concatenate([single, (total / counts).astype(x.dtype)], axis=1)

    def undo(self, y: Float[Array, "q m c"]) -> Float[Array, "q n c"]:
        """What each token gets: its own, or that of its destination."""
        single, count = self.single.shape[1], self.destinations.shape[1]
        batch = (len(y), single + count)
        tokens = jnp.concatenate([self.single, self.destinations, self.merged], axis=1)
        own = jnp.broadcast_to(jnp.arange(batch[1])[None], batch)
        places = jnp.concatenate([own, single + self.into], axis=1)
        return _rows(y, jnp.take_along_axis(places, jnp.argsort(tokens, axis=1), axis=1))


def _rows(x: Float[Array, "q n c"], index: Int[Array, "q m"]) -> Float[Array, "q m c"]:
    return jnp.take_along_axis(x, index[..., None], axis=1)


def windows(size: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of windows there are; what is left of a side that is odd is in none."""
    return size[0] // _WINDOW, size[1] // _WINDOW


def match(x: Float[Array, "q n c"], size: tuple[int, int], places: Int[Array, "q y x"], ratio: float) -> Merge:
    """Which tokens are to be averaged.

    Args:
      x: tokens of feature maps.
      size: rows and columns of the maps, at least `LEAST_SIDE` of each.
      places: of the destinations in their windows, from 0 to 3, row by row.
      ratio: how many of the tokens are merged, from 0 to `MAX_RATIO`.
    """
    count = places.shape[1] * places.shape[2]
    chosen = _spread(places, size) == _places(size)[None]
    # Stable, so both are in the order of the tokens.
    order = jnp.argsort(jnp.where(chosen.reshape(x.shape[:2]), 0, 1), axis=1, stable=True)
    destinations, sources = order[:, :count], order[:, count:]
    tokens = x.astype(jnp.float32)
    tokens = tokens / jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), _LEAST_NORM)
    likeness = jnp.einsum("qsc,qdc->qsd", _rows(tokens, sources), _rows(tokens, destinations))
    ranked = jnp.argsort(-likeness.max(axis=-1), axis=1, stable=True)
    merged, single = jnp.split(ranked, [min(int(x.shape[1] * ratio), sources.shape[1])], axis=1)

    def of(values: Int[Array, "q s"], index: Int[Array, "q m"]) -> Int[Array, "q m"]:
        return jnp.take_along_axis(values, index, axis=1)

    return Merge(of(sources, single), of(sources, merged), destinations, of(likeness.argmax(axis=-1), merged))


def _spread(places: Int[Array, "q y x"], size: tuple[int, int]) -> Int[Array, "q h w"]:
    """For each token the destination's place in its window; -1 in none."""
    spread = jnp.repeat(jnp.repeat(places, _WINDOW, axis=1), _WINDOW, axis=2)
    (height, width), (rows, columns) = size, spread.shape[1:]
    return jnp.pad(spread, ((0, 0), (0, height - rows), (0, width - columns)), constant_values=-1)


def _places(size: tuple[int, int]) -> Int[Array, "h w"]:
    """For each token its own place in its window."""
    rows, columns = (jnp.arange(side) % _WINDOW for side in size)
    return rows[:, None] * _WINDOW + columns[None]


@contextmanager
def token_merging(ratio: float, size: tuple[int, int], choose: Choose) -> Iterator[None]:
    """A context in which tokens are merged before a UNet's self-attention.

    Args:
      ratio: as of `match`.
      size: of the feature maps where it is done, at least `LEAST_SIDE` along each side.
      choose: gives the destinations. The UNet's batch may be a multiple of the images, the images being the faster
        axis; all rows of an image have the same destinations.
    """
    layers, merge, at_size = 0, None, False

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal layers, merge, at_size
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, SpatialTransformer):
            at_size = args[0].shape[1:3] == size
        elif at_size and isinstance(module, TransformerBlock):
            places = choose(layers, windows(size))
            merge = match(args[0], size, jnp.tile(places, (len(args[0]) // len(places), 1, 1)), ratio)
            layers += 1
        elif at_size and isinstance(module, Attention) and module.name == _SELF_ATTENTION:
            assert merge is not None, "it is in a transformer block"
            return merge.undo(call(merge.apply(args[0]), *args[1:], **kwargs))
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield
