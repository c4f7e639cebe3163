"""Resizes input images, masks and depth maps to the size of the image to be made.

The sizes, the places and the filters are those of diffusers' VaeImageProcessor, whose modes "default", "crop" and
"fill" are A1111's "Just resize", "Crop and resize" and "Resize and fill".
"""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from sdjax.images.decode import MAX_PIXELS, ImageError

RESIZE_MODES = ("stretch", "crop", "pad")


def fitted(pixels: UInt8[np.ndarray, "h w 3"], height: int, width: int, mode: str) -> UInt8[np.ndarray, "y x 3"]:
    """Resizes an image with Lanczos' filter.

    Args:
      pixels: of any size.
      height, width: of the result.
      mode: "stretch" changes its proportions; "crop" keeps them and cuts what is too much off its sides; "pad" keeps
        them and repeats its outermost rows or columns where it is too small.
    """
    return np.array(_resized(Image.fromarray(np.ascontiguousarray(pixels)), height, width, mode, _LANCZOS))


def fitted_mask(mask: Float32[np.ndarray, "h w"], height: int, width: int, mode: str) -> Float32[np.ndarray, "y x"]:
    """A mask, from 0 to 1, in another size: as `fitted`, in 8 bits, as diffusers has masks.

    A hard mask gets soft edges of a pixel or two; those who need it hard round it, as diffusers does.
    """
    eight = Image.fromarray(np.floor(np.clip(mask, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    return np.asarray(_resized(eight, height, width, mode, _LANCZOS)).astype(np.float32) / np.float32(255)


def fitted_grey(values: Float32[np.ndarray, "h w"], height: int, width: int, mode: str) -> Float32[np.ndarray, "y x"]:
    """A map of numbers, such as depth, in another size: bicubic, and nowhere beyond its own least and largest value."""
    resized = _resized(Image.fromarray(np.ascontiguousarray(values)), height, width, mode, _BICUBIC)
    return np.clip(np.asarray(resized), values.min(), values.max())


def snapped(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Height and width rounded down to multiples, as diffusers does, but to one at least."""
    return max(height - height % multiple, multiple), max(width - width % multiple, multiple)


_LANCZOS, _BICUBIC = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC


def _resized(image: Image.Image, height: int, width: int, mode: str, filter_: Image.Resampling) -> Image.Image:
    if mode not in RESIZE_MODES:
        raise ValueError(f"resize mode {mode!r}: expected one of {', '.join(RESIZE_MODES)}")
    if mode == "stretch":
        return image.resize((width, height), filter_)
    # Of the two sizes that keep the proportions the one that covers the image, or the one that is within it.
    wider = image.width * height > width * image.height
    if wider == (mode == "crop"):
        size = image.width * height // image.height, height
    else:
        size = width, image.height * width // image.width
    # Of an input image that is long and narrow, the one that covers the size may be as large as no other.
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"{image.width}x{image.height} pixels are too narrow for resize_mode = crop to {width}x{height}"
        )
    resized = image.resize((max(1, size[0]), max(1, size[1])), filter_)
    left, top = width // 2 - resized.width // 2, height // 2 - resized.height // 2
    whole = Image.new(image.mode, (width, height))
    whole.paste(resized, (left, top))
    if mode == "pad":
        _fill(whole, resized, left, top)
    return whole


def _fill(whole: Image.Image, inner: Image.Image, left: int, top: int) -> None:
    """Fills the margin beside the inner image by repeating its edges.

    An edge is a part of the image of no width, which Pillow resizes by its default filter: so the reference does it.
    """
    right, bottom = left + inner.width, top + inner.height
    if top > 0:
        whole.paste(inner.resize((inner.width, top), box=(0, 0, inner.width, 0)), (left, 0))
    if bottom < whole.height:
        edge = (0, inner.height, inner.width, inner.height)
        whole.paste(inner.resize((inner.width, whole.height - bottom), box=edge), (left, bottom))
    if left > 0:
        whole.paste(inner.resize((left, inner.height), box=(0, 0, 0, inner.height)), (0, top))
    if right < whole.width:
        edge = (inner.width, 0, inner.width, inner.height)
        whole.paste(inner.resize((whole.width - right, inner.height), box=edge), (right, top))
