"""Pictures enlarged by an upscaler, a tile at a time.

Tiles are all of one size, so that there is one program; those at borders lie within the picture, where the network sees
the border as it would in the whole. Where tiles overlap, the result changes from one to the other in the middle, where
both have seen as much around it.
"""

import collections
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from sdjax.checkpoints.upscaler_file import UpscalerNetwork
from sdjax.device import platform_of, program_for
from sdjax.models.upscaler import UpscalerConfig, network_of

# Batches of tiles on the device: while one is worked on, the next one waits there.
_AHEAD = 2


class _Span(NamedTuple):
    """A tile along one axis, and which part of the picture is taken from it."""

    start: int
    first: int
    last: int

    def times(self, factor: int) -> "_Span":
        """The same in pixels that are so many times smaller."""
        return _Span(self.start * factor, self.first * factor, self.last * factor)


class _Tile(NamedTuple):
    """A tile of one of the pictures."""

    picture: int
    rows: _Span
    columns: _Span


def upscaled(
    upscaler: UpscalerNetwork, pixels: UInt8[np.ndarray, "b h w 3"], tile: int = 256, overlap: int = 64, batch: int = 1
) -> UInt8[np.ndarray, "b i j 3"]:
    """Pictures, as many times larger as the upscaler makes them.

    The bits of one depend on itself, the upscaler, `tile`, `overlap` and `batch` alone, not on those beside it.

    Sides are in pixels at which most of the network works: those of the picture, or where it puts squares of them into
    channels first (x2plus), these squares.

    Args:
      upscaler: as `sdjax.checkpoints.upscaler_file.read_upscaler` gives it; it runs where its parameters are.
      pixels: sRGB, of any size from 1 on.
      tile: side of what the network is given at once; less where a picture is smaller. What is in memory goes with its
        square: with x4plus in float32, 0.5 GB for 256.
      overlap: what the network sees around each part of the result, at least; no more than it reaches. From the
        network's `reach` on the result is that of the whole picture, but for the rounding of sums. With 64, x4plus is
        nowhere more than 1 of 255 from that; with 48, at 0.2 % of the values of a photograph; with 16, at 10 %. Of its
        small sibling for drawings 32 gives what 64 does here.
      batch: tiles that go through the network at once; the last ones are filled up.

    Raises:
      ValueError: if nothing of a tile is left between the overlaps.
      FloatingPointError: if a result is not finite, as numbers of 16 bits may be.
    """
    count, height, width = pixels.shape[:3]
    step, scale = upscaler.config.unshuffle, upscaler.scale
    overlap = min(overlap, -(-upscaler.config.reach // step))
    padded = np.pad(pixels, [(0, 0), (0, -height % step), (0, -width % step), (0, 0)], mode="reflect")
    rows, columns = ([span.times(step) for span in _spans(side // step, tile, overlap)] for side in padded.shape[1:3])
    window = [min(tile * step, side) for side in padded.shape[1:3]]
    result = np.empty((count, padded.shape[1] * scale, padded.shape[2] * scale, 3), np.uint8)
    tiles = itertools.starmap(_Tile, itertools.product(range(count), rows, columns))
    run = program_for(platform_of(upscaler.params), _tiles_upscaled, upscaler.config)
    pending: collections.deque[tuple[list[_Tile], Any]] = collections.deque()

    def put() -> None:
        some, (found, finite) = pending.popleft()
        if not np.all(finite[: len(some)]):
            raise FloatingPointError("the upscaler gave what is not finite: read it in float32")
        for (picture, *spans), part in zip(some, np.asarray(found), strict=False):
            down, across = (span.times(scale) for span in spans)
            to = result[picture, down.first : down.last, across.first : across.last]
            top, left = down.first - down.start, across.first - across.start
            to[...] = part[top : top + to.shape[0], left : left + to.shape[1]]

    while some := list(itertools.islice(tiles, batch)):
        given = np.zeros((batch, *window, 3), np.uint8)
        for place, (picture, down, across) in enumerate(some):
            given[place] = padded[picture, down.start :, across.start :][: window[0], : window[1]]
        pending.append((some, run(upscaler.params, given)))
        if len(pending) == _AHEAD:
            put()
    while pending:
        put()
    return result[:, : height * scale, : width * scale]


def _spans(length: int, tile: int, overlap: int) -> list[_Span]:
    """Tiles from one border to the other."""
    if length <= tile:
        return [_Span(0, 0, length)]
    if tile <= 2 * overlap:
        raise ValueError(f"of a tile of {tile} nothing is left between overlaps of {overlap}: take larger tiles")
    starts = [*range(0, length - tile, tile - 2 * overlap), length - tile]
    middles = [(before + tile + after) // 2 for before, after in itertools.pairwise(starts)]
    return [_Span(*span) for span in zip(starts, [0, *middles], [*middles, length], strict=True)]


def _tiles_upscaled(
    config: UpscalerConfig, params: Any, tiles: UInt8[Array, "b h w 3"]
) -> tuple[UInt8[Array, "b i j 3"], Bool[Array, " b"]]:
    """Tiles as the network enlarges them, and whether each result is finite."""
    dtype = jax.tree.leaves(params)[0].dtype
    with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
        given = (tiles.astype(jnp.float32) / 255).astype(dtype)
        values = network_of(config).apply({"params": params}, given).astype(jnp.float32)
    finite = jnp.isfinite(values).all(axis=(1, 2, 3))
    return jnp.round(jnp.clip(values * 255, 0, 255)).astype(jnp.uint8), finite
