"""What ControlNets are given of an image, as far as it takes no weights: edges, lines, colours.

Each gives what the preprocessor of sd-webui-controlnet gives at the image's own size (it resizes images to 512
pixels on the shorter side first; here they have the image's size already). Integers are exact, and the same everywhere.
"""

import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from sdjax.images.canny import canny
from sdjax.images.masks import gaussian
from sdjax.messages import quoted


def none(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image as it is: it is what the ControlNet expects already."""
    return pixels


def invert(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """White lines on black from black ones on white, which is what most ControlNets of lines expect."""
    return 255 - pixels


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
