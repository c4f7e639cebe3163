"""Canny's edge detector (1986), to the bit as OpenCV's `Canny`: the most usual preprocessor of ControlNets."""

import math

import numpy as np
from jaxtyping import Bool, Int16, UInt8


def canny(pixels: UInt8[np.ndarray, "h w 3"], low: float = 100, high: float = 200) -> UInt8[np.ndarray, "h w 3"]:
    """Edges of one pixel, white on black: Canny's detector (1986), to the bit as OpenCV's `Canny(pixels, low, high)`.

    Args:
      pixels: of each pixel the channel counts whose gradient is the largest.
      low, high: of the gradient (Sobel's, 3x3, |x| + |y|): above `high` an edge begins, above `low` it goes on.

    Raises:
      ValueError: if a threshold is not a number from 0.
    """
    if not (low >= 0 and high >= 0 and math.isfinite(low + high)):
        raise ValueError(f"canny: thresholds {low} and {high}; expected numbers from 0")
    low, high = sorted((math.floor(low), math.floor(high)))
    across, down = _gradient(pixels)
    strength = np.pad(np.abs(across) + np.abs(down), 1)
    ridge = _is_ridge(across, down, strength) & (strength[1:-1, 1:-1] > low)
    edges = _connected(ridge & (strength[1:-1, 1:-1] > high), ridge)
    return np.repeat(np.where(edges, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)


def _gradient(pixels: UInt8[np.ndarray, "h w c"]) -> tuple[Int16[np.ndarray, "h w"], Int16[np.ndarray, "h w"]]:
    """Sobel's differences to the right and down, of the channel in which they are the largest."""
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).astype(np.int16)
    wide = np.pad(planes, ((0, 0), (1, 1), (1, 1)), "edge")
    smooth_down = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    across = smooth_down[..., 2:] - smooth_down[..., :-2]
    smooth_across = wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]
    down = smooth_across[:, 2:] - smooth_across[:, :-2]
    strength = np.abs(across) + np.abs(down)
    best = 0 * strength[0]
    for channel in range(1, len(planes)):  # of equal channels the first
        better = strength[channel] > np.choose(best, strength)
        best[better] = channel
    return np.choose(best, across), np.choose(best, down)


# tan(22.5 degrees) in 15 binary places, as OpenCV has it.
_TANGENT, _PLACES = 13573, 15


def _is_ridge(
    across: Int16[np.ndarray, "h w"], down: Int16[np.ndarray, "h w"], strength: Int16[np.ndarray, "h2 w2"]
) -> Bool[np.ndarray, "h w"]:
    """Whether the gradient is larger than its two neighbours' in its own direction, of four.

    Of two equal neighbours in a row or a column the first counts, in a diagonal neither.
    """

    def beside(row: int, column: int) -> Int16[np.ndarray, "h w"]:
        height, width = across.shape
        return strength[1 + row : 1 + row + height, 1 + column : 1 + column + width]

    own = beside(0, 0)
    steep = np.abs(down).astype(np.int32) << _PLACES
    level_part = np.abs(across).astype(np.int32)
    flat = level_part * _TANGENT
    # tan(67.5 degrees) = 2 + tan(22.5 degrees)
    level, upright = steep < flat, steep > flat + (level_part << (_PLACES + 1))
    in_row = (own > beside(0, -1)) & (own >= beside(0, 1))
    in_column = (own > beside(-1, 0)) & (own >= beside(1, 0))
    falling = (own > beside(-1, -1)) & (own > beside(1, 1))
    rising = (own > beside(-1, 1)) & (own > beside(1, -1))
    diagonal = np.where((across ^ down) < 0, rising, falling)
    return np.where(level, in_row, np.where(upright, in_column, diagonal))


def _connected(seeds: Bool[np.ndarray, "h w"], among: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The pixels that can be reached from a seed by steps to one of eight neighbours."""
    width = among.shape[1] + 2
    open_ = np.pad(among & ~seeds, 1).ravel()
    steps = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    reached = np.pad(seeds, 1).ravel()
    front = np.flatnonzero(reached)
    while front.size:
        near = (front[:, None] + steps).ravel()
        front = np.unique(near[open_[near]])
        open_[front], reached[front] = False, True
    return reached.reshape(-1, width)[1:-1, 1:-1]
