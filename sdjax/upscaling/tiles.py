"""Images enlarged by a network, a tile at a time.

Tiles are all of one size, so that there is one program; those at borders lie within the image, where the network sees
the border as it would in the whole. Where tiles overlap, the result changes from one to the other in the middle, where
both were computed with as much around it.
"""

import collections
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from sdjax.models.upscaler import UpscalerConfig, network_of

# Tiles on the devices: while one is worked on, the next one waits there.
_AHEAD = 2

# (tiles of all images) -> these enlarged, and whether each is finite; arrays that the devices may still work on.
Run = Callable[[UInt8[np.ndarray, "b h w 3"]], tuple[Any, Any]]


class _Span(NamedTuple):
    """A tile along one axis, and which part of the image is taken from it."""

    start: int
    first: int
    last: int

    def times(self, factor: int) -> "_Span":
        """The same in pixels that are so many times smaller."""
        return _Span(self.start * factor, self.first * factor, self.last * factor)


class Enlarged(NamedTuple):
    """Images, and whether the network gave numbers for each; where it did not, the image is worth nothing."""

    images: UInt8[np.ndarray, "b h w 3"]
    finite: Bool[np.ndarray, " b"]


def enlarged_in_tiles(
    config: UpscalerConfig, run: Run, images: UInt8[np.ndarray, "b h w 3"], tile: int = 256, overlap: int = 64
) -> Enlarged:
    """Images as many times larger as the network makes them.

    The bits of one depend on itself, the network, `tile`, `overlap` and the batch of `run`, not on those beside it.

    Sides are in pixels at which most of the network works: those of the image, or where it puts squares of them into
    channels first (x2plus), these squares.

    Args:
      config: of the network.
      run: the program of `enlarged_tiles` on the devices.
      images: sRGB, of any size from 1 on.
      tile: side of what the network is given at once; less where an image is smaller. What is in memory goes with its
        square: with x4plus in float32, 0.5 GB for 256.
      overlap: what the network sees around each part of the result, at least; no more than it reaches. From the
        network's `reach` on the result is that of the whole image, but for the rounding of sums. With 64, x4plus is
        nowhere more than 1 of 255 from that; with 48, at 0.2 % of the values of a photograph; with 16, at 10 %. Of its
        small sibling for drawings 32 gives what 64 does here.

    Raises:
      ValueError: if nothing of a tile is left between the overlaps.
    """
    count, height, width = images.shape[:3]
    step, scale = config.unshuffle, config.scale
    overlap = min(overlap, -(-config.reach // step))
    padded = np.pad(images, [(0, 0), (0, -height % step), (0, -width % step), (0, 0)], mode="reflect")
    rows, columns = ([span.times(step) for span in _spans(side // step, tile, overlap)] for side in padded.shape[1:3])
    window = [min(tile * step, side) for side in padded.shape[1:3]]
    result = np.empty((count, padded.shape[1] * scale, padded.shape[2] * scale, 3), np.uint8)
    finite = np.ones(count, bool)
    pending: collections.deque[tuple[_Span, _Span, Any]] = collections.deque()

    def put() -> None:
        *spans, (found, sound) = pending.popleft()
        down, across = (span.times(scale) for span in spans)
        to = result[:, down.first : down.last, across.first : across.last]
        top, left = down.first - down.start, across.first - across.start
        to[...] = np.asarray(found)[:, top : top + to.shape[1], left : left + to.shape[2]]
        finite[...] &= np.asarray(sound)

    for down, across in itertools.product(rows, columns):
        window_of_all = padded[:, down.start :, across.start :][:, : window[0], : window[1]]
        pending.append((down, across, run(np.ascontiguousarray(window_of_all))))
        if len(pending) == _AHEAD:
            put()
    while pending:
        put()
    return Enlarged(result[:, : height * scale, : width * scale], finite)


def _spans(length: int, tile: int, overlap: int) -> list[_Span]:
    """Tiles from one border to the other."""
    if length <= tile:
        return [_Span(0, 0, length)]
    if tile <= 2 * overlap:
        raise ValueError(f"of a tile of {tile} nothing is left between overlaps of {overlap}: take larger tiles")
    starts = [*range(0, length - tile, tile - 2 * overlap), length - tile]
    middles = [(before + tile + after) // 2 for before, after in itertools.pairwise(starts)]
    return [_Span(*span) for span in zip(starts, [0, *middles], [*middles, length], strict=True)]


def enlarged_tiles(
    config: UpscalerConfig, params: Any, tiles: UInt8[Array, "b h w 3"]
) -> tuple[UInt8[Array, "b i j 3"], Bool[Array, " b"]]:
    """Tiles as the network enlarges them, and whether each result is finite."""
    dtype = jax.tree.leaves(params)[0].dtype
    with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
        pixels = (tiles.astype(jnp.float32) / 255).astype(dtype)
        values = network_of(config).apply({"params": params}, pixels).astype(jnp.float32)
    finite = jnp.isfinite(values).all(axis=(1, 2, 3))
    return jnp.round(jnp.clip(values * 255, 0, 255)).astype(jnp.uint8), finite
