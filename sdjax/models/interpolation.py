"""Enlarging and reducing feature maps as torch's `interpolate` does, without antialiasing; and its pixel shuffles.

`jax.image.resize` smooths when it reduces, has another cubic, and does not align corners. Where output pixel i lies is
worked out in float32, as torch does: in float64 a wide map would differ by more than its rounding.
"""

from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int

Map = TypeVar("Map", jax.Array, np.ndarray)

# Keys' cubic convolution, with the slope at distance one that torch has (1981, IEEE ASSP 29(6), eq. 4).
_SLOPE = np.float32(-0.75)
_HALF, _ONE = np.float32(0.5), np.float32(1)


class _Taps(NamedTuple):
    """Each output pixel along one axis: of which input pixels it is made, and how much of each."""

    indices: Int[np.ndarray, "taps out"]
    weights: Float[np.ndarray, "taps out"]


def _places(length: int, out: int, align_corners: bool) -> Float[np.ndarray, " out"]:
    """Where the centres of the output's pixels lie, in pixels of the input."""
    pixels = np.arange(out, dtype=np.float32)
    if align_corners:
        return pixels * (np.float32(length - 1) / np.float32(out - 1) if out > 1 else np.float32(0))
    return np.float32(length) / np.float32(out) * (pixels + _HALF) - _HALF


def _linear(length: int, out: int, align_corners: bool) -> _Taps:
    places = np.maximum(_places(length, out, align_corners), np.float32(0))
    first = np.minimum(places.astype(np.int32), length - 1)
    after = np.minimum(first + 1, length - 1)
    share = np.clip(places - first.astype(np.float32), np.float32(0), _ONE)
    return _Taps(np.stack([first, after]), np.stack([_ONE - share, share]))


def _cubic(length: int, out: int) -> _Taps:
    places = _places(length, out, False)
    first = np.floor(places).astype(np.int32)
    share = places - first.astype(np.float32)

    def near(x: Float[np.ndarray, " out"]) -> Float[np.ndarray, " out"]:
        return ((_SLOPE + 2) * x - (_SLOPE + 3)) * x * x + 1

    def far(x: Float[np.ndarray, " out"]) -> Float[np.ndarray, " out"]:
        return ((_SLOPE * x - 5 * _SLOPE) * x + 8 * _SLOPE) * x - 4 * _SLOPE

    weights = np.stack([far(share + 1), near(share), near(_ONE - share), far(2 - share)])
    indices = np.clip(np.stack([first + offset for offset in (-1, 0, 1, 2)]), 0, length - 1)
    return _Taps(indices, weights)


def _applied(x: Map, axis: int, taps: _Taps) -> Map:
    shape = [1] * x.ndim
    shape[axis] = taps.indices.shape[1]
    parts = [x.take(i, axis=axis) * w.reshape(shape) for i, w in zip(*taps, strict=True)]
    return sum(parts[1:], parts[0])


def bilinear(
    x: Float[Map, "b h w c"], height: int, width: int, align_corners: bool = False
) -> Float[Map, "b {height} {width} c"]:
    """Two neighbours along each axis, weighted by nearness; numpy's arrays are done by numpy.

    Args:
      align_corners: whether the centres of the first and last pixels stay where they are, instead of their outer edges.
    """
    wide = x.astype(np.float32)
    wide = _applied(wide, 2, _linear(x.shape[2], width, align_corners))
    return _applied(wide, 1, _linear(x.shape[1], height, align_corners)).astype(x.dtype)


def bicubic(x: Float[Map, "b h w c"], height: int, width: int) -> Float[Map, "b {height} {width} c"]:
    """Four neighbours along each axis, the outermost repeated at the edges; numpy's arrays are done by numpy."""
    wide = x.astype(np.float32)
    wide = _applied(wide, 2, _cubic(x.shape[2], width))
    return _applied(wide, 1, _cubic(x.shape[1], height)).astype(x.dtype)


def pixel_unshuffle(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b i j d"]:
    """Squares of pixels as channels, in torch's order: channel, row, column."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // side, side, width // side, side, channels)
    return squares.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // side, width // side, channels * side**2)


def pixel_shuffle(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b i j d"]:
    """The way back from `pixel_unshuffle`."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height, width, channels // side**2, side, side)
    return squares.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height * side, width * side, channels // side**2)
