"""What ControlNets are given of an image, as far as it takes no weights: edges, lines, colours.

Each gives what the preprocessor of sd-webui-controlnet gives at the image's own size (it resizes images to 512
pixels on the shorter side first; here they have the image's size already). Integers are exact, and the same everywhere.
"""

import math
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32, Int16, UInt8
from PIL import Image

from sdjax.images.masks import gaussian
from sdjax.messages import quoted


def none(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image as it is: it is what the ControlNet expects already."""
    return pixels


def invert(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """White lines on black from black ones on white, which is what most ControlNets of lines expect."""
    return 255 - pixels


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


def lines(pixels: UInt8[np.ndarray, "h w 3"], sigma: float = 6, threshold: float = 8) -> UInt8[np.ndarray, "h w 3"]:
    """A line drawing, white on black, as "lineart_standard": where an image is darker than what is around it.

    Args:
      pixels: best of dark lines on a light ground.
      sigma: of the Gaussian that says what is around, in pixels.
      threshold: differences (of 255) above it are the lines whose median is drawn in middle grey.

    Raises:
      ValueError: if sigma is not from 0.1 to 100.
    """
    if not 0.1 <= sigma <= 100:
        raise ValueError(f"lines: sigma {sigma}; expected 0.1 to 100")
    values = pixels.astype(np.float32)
    # OpenCV's own reach for float32: 4 standard deviations.
    darker = np.clip((gaussian(values, sigma, round(sigma * 8 + 1) // 2) - values).min(-1), 0, 255)
    found = darker[darker > threshold]
    middle = max(np.float32(16), np.median(found)) if found.size else np.float32(16)
    drawn = np.clip(darker / middle * np.float32(127), 0, 255).astype(np.uint8)
    return np.repeat(drawn[..., None], 3, axis=-1)


def tile(pixels: UInt8[np.ndarray, "h w 3"], factor: float = 1) -> UInt8[np.ndarray, "h w 3"]:
    """An image without its finer detail, as "tile_resample": made smaller by the mean, and large again (bicubic).

    Args:
      pixels: of any size.
      factor: how much smaller; below 1.1 nothing is done, as there.

    Raises:
      ValueError: if the factor is not from 1 to 64.
    """
    if not 1 <= factor <= 64:
        raise ValueError(f"tile: factor {factor}; expected 1 to 64")
    if factor < 1.1:
        return pixels
    height, width = pixels.shape[:2]
    small = max(1, int(width / factor)), max(1, int(height / factor))
    smaller = Image.fromarray(np.ascontiguousarray(pixels)).resize(small, Image.Resampling.BOX)
    return np.array(smaller.resize((width, height), Image.Resampling.BICUBIC))


def colour_grid(pixels: UInt8[np.ndarray, "h w 3"], cell: int = 64) -> UInt8[np.ndarray, "h w 3"]:
    """Squares of one colour each, as "t2ia_color_grid" for the T2I-Adapter of colours.

    Args:
      pixels: of any size; parts of a cell are spread over the others.
      cell: pixels to a side of a square. Its colour is a cubic interpolation in its middle, no mean.

    Raises:
      ValueError: if the cell is no whole number from 1.
    """
    if cell < 1 or cell != int(cell):
        raise ValueError(f"colour_grid: cell {cell}; expected a whole number from 1")
    height, width = pixels.shape[:2]
    cell = int(cell)
    rows, columns = max(1, height // cell), max(1, width // cell)
    values = _cubic(_cubic(pixels.astype(np.float32), columns, 1), rows, 0)
    small = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return small[np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)]


PREPROCESSORS: dict[str, Callable[..., UInt8[np.ndarray, "h w 3"]]] = {
    "none": none,
    "canny": canny,
    "lines": lines,
    "invert": invert,
    "tile": tile,
    "colour_grid": colour_grid,
}


class PreprocessorError(ValueError):
    """A preprocessor is named in a way that can't be read."""


def read_preprocessor(text: str) -> tuple[str, tuple[float, ...]]:
    """`name:number:number`: a key of `PREPROCESSORS`, and its numbers in their order, as far as they are said.

    Raises:
      PreprocessorError: for numbers that it does not take.
    """
    name, *said = (part.strip() for part in text.split(":"))
    name = re.sub(r"[\s-]+", "_", name.lower())
    try:
        numbers = tuple(int(part) if part.isdecimal() else float(part) for part in said)
        if name in PREPROCESSORS:
            PREPROCESSORS[name](np.zeros((1, 1, 3), np.uint8), *numbers)
        elif numbers:
            raise PreprocessorError(f"{quoted(text)}: it takes no numbers")
    except (ValueError, TypeError) as error:
        raise PreprocessorError(f"{quoted(text)}: {error!s:.200}") from error
    return name, numbers


# --- Canny's parts ---


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


def _cubic(values: Float32[np.ndarray, "h w c"], wanted: int, axis: int) -> Float32[np.ndarray, "y x c"]:
    """Interpolation by Keys' cubic (a = -0.75) at the middles of `wanted` parts, as OpenCV's INTER_CUBIC."""
    size = values.shape[axis]
    places = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
    first = np.floor(places).astype(int)
    total = np.zeros(1, np.float32)
    for step in range(-1, 3):
        distance = np.abs(places - first - step)
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        weights = np.where(distance <= 1, near, far).astype(np.float32)
        taken = np.take(values, np.clip(first + step, 0, size - 1), axis)
        total = total + taken * weights.reshape([-1 if each == axis else 1 for each in range(values.ndim)])
    return total
