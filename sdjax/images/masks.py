"""Masks of inpainting, with the meanings they have in diffusers and in AUTOMATIC1111's web UI.

A mask is float32 from 0, which stays, to 1, which is repainted.
"""

import numpy as np
from jaxtyping import Float32, UInt8

from sdjax.diffusion import elementary
from sdjax.images.decode import ImageError
from sdjax.images.fit import fitted_mask

# From here on models that take a mask take it for white.
HALF = 0.5


def inverted(mask: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """What was to stay is repainted, and the other way round."""
    return 1 - mask


def blurred(mask: Float32[np.ndarray, "h w"], radius: float) -> Float32[np.ndarray, "h w"]:
    """The mask with soft edges, as by A1111's "Mask blur".

    Args:
      mask: hard or soft.
      radius: the standard deviation of the Gaussian in pixels, which reaches 2.5 times as far; 0 leaves the mask as
        it is.
    """
    if radius <= 0:
        return mask
    reach = int(2.5 * radius + 0.5)
    # Farther away nothing comes of it; and what is mirrored at the edges is there whole.
    places = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    if not len(places[0]):
        return mask
    part = tuple(slice(max(each.min() - 2 * reach, 0), each.max() + 2 * reach + 1) for each in places)
    soft = np.zeros_like(mask)
    soft[part] = np.clip(gaussian(mask[part], radius, reach), 0, 1)
    return soft


def gaussian(values: Float32[np.ndarray, "h w *c"], sigma: float, reach: int) -> Float32[np.ndarray, "h w *c"]:
    """A Gaussian blur over rows and columns; the image goes on beyond its edge as in a mirror in the last pixel.

    As OpenCV's `GaussianBlur` on float32, whose kernel has 2 * reach + 1 weights.
    """
    weights = elementary.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 0):
        size = values.shape[axis]
        padding = [(reach, reach) if each == axis else (0, 0) for each in range(values.ndim)]
        wide = np.moveaxis(np.pad(values, padding, "reflect" if size > 1 else "edge"), axis, 0)
        total = weights[reach] * wide[reach : reach + size]
        for step in range(reach):
            total += weights[step] * (wide[step : step + size] + wide[2 * reach - step : 2 * reach - step + size])
        values = np.moveaxis(total, 0, axis)
    return np.ascontiguousarray(values)


def latent_mask(mask: Float32[np.ndarray, "h w"], height: int, width: int) -> Float32[np.ndarray, "y x"]:
    """The mask in the size of the latents: each gets the value of one of its pixels, as in diffusers (torch's nearest).

    Args:
      mask: in the size of the image.
      height, width: of the latents.
    """
    return mask[np.ix_(_nearest(mask.shape[0], height), _nearest(mask.shape[1], width))]


def _nearest(size: int, wanted: int) -> np.ndarray:
    """Which of `size` values torch takes for each of `wanted`: rounded down, in float32."""
    places = np.arange(wanted).astype(np.float32) * (np.float32(size) / np.float32(wanted))
    return np.minimum(places.astype(np.int64), size - 1)


def crop_region(mask: Float32[np.ndarray, "h w"], padding: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of an image around its mask which is drawn, enlarged, when only the masked part is to be.

    As diffusers' `VaeImageProcessor.get_crop_region` and A1111's `get_crop_region_v2` with `expand_crop_region`.

    Args:
      mask: in the image's size.
      padding: pixels added at each side.
      size: height and width at which it is drawn: the region is widened to these proportions, where the image
        has room for it.

    Returns:
      top, left, bottom and right, of which the last two are not within.

    Raises:
      ImageError: if nothing is masked.
    """
    # Less than half a step of 8 bits is nothing: there the references' masks are 0.
    masked = mask >= 0.5 / 255
    rows, columns = np.flatnonzero(masked.any(1)), np.flatnonzero(masked.any(0))
    if not len(rows):
        raise ImageError("nothing is masked: the mask is 0 everywhere")
    height, width = mask.shape
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, height)
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, width)
    aspect = size[1] / size[0]
    if (right - left) / (bottom - top) > aspect:
        top, bottom = _widened(top, bottom, int((right - left) / aspect - (bottom - top)), height)
    else:
        left, right = _widened(left, right, int((bottom - top) * aspect - (right - left)), width)
    return top, left, bottom, right


def _widened(start: int, end: int, more: int, limit: int) -> tuple[int, int]:
    """A stretch that is longer on both sides, moved back within 0 and the limit; cut where it is too long for that."""
    start, end = start - more // 2, end + more - more // 2
    if end > limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def pasted(
    original: UInt8[np.ndarray, "h w 3"], drawn: UInt8[np.ndarray, "h w 3"], mask: Float32[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The drawn pixels where the mask is 1, exactly the original ones where it is 0, and a mixture between."""
    share = mask[..., None]
    return np.floor(original * (1 - share) + drawn * share + np.float32(0.5)).astype(np.uint8)


def fitted_to(mask: Float32[np.ndarray, "h w"], height: int, width: int) -> Float32[np.ndarray, "y x"]:
    """The mask in the size of its image, if it has its proportions within a pixel of the coarser of the two.

    Raises:
      ImageError: if it has others.
    """
    own_height, own_width = mask.shape
    if (own_height, own_width) == (height, width):
        return mask
    if abs(height * own_width - own_height * width) > max(height, width, own_height, own_width):
        raise ImageError(
            f"wrong size for the mask: {own_width}x{own_height}; the image has {width}x{height} pixels. "
            "Expected the same size, or the same proportions"
        )
    return fitted_mask(mask, height, width, "stretch")
