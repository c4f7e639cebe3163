"""Previews of an image: what it looked like on the way, as a strip and as an animation."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sdjax.images.captions import PAPER, Grid, draw_grid, enlarged
from sdjax.images.decode import MAX_PIXELS, ImageError, opened_image

ANIMATIONS = ("webp", "gif")
_FORMATS = ("PNG", "WEBP", "GIF")
# Of an animation, in milliseconds.
_EACH, _LAST = 200, 1500
# Of a frame, and of an image in a strip, in pixels: larger ones are made smaller.
_NARROWEST, _WIDEST, _WIDEST_IN_STRIP = 256, 2048, 256
# Frames of an animation: all previews, and the result.
_MOST_FRAMES = 65
# Between the two images of a frame, in pixels.
_GAP = 4


class Preview(NamedTuple):
    """An image at one step, decoded to sRGB: the noisy latents, and the network's denoised estimate."""

    step: int
    noisy: UInt8[np.ndarray, "h w 3"]
    denoised: UInt8[np.ndarray, "h w 3"]


def check_previews(data: bytes, name: str) -> None:
    """Decodes a strip or an animation whole; raises `ImageError` if it is damaged, or larger than any of ours."""
    with opened_image(data, name, _FORMATS, most_pixels=_MOST_FRAMES * MAX_PIXELS // 16) as (image, _):
        frames = getattr(image, "n_frames", 1)
        if frames > _MOST_FRAMES or frames * image.width * image.height > _MOST_FRAMES * MAX_PIXELS // 16:
            raise ImageError(f"{name}: {frames} frames of {image.width}x{image.height} pixels, more than are kept")
        for frame in range(frames):
            image.seek(frame)
            image.load()


def strip(previews: Sequence[Preview], result: UInt8[np.ndarray, "h w 3"], title: str) -> bytes:
    """All previews from left to right, as a PNG: the noisy latents above, the denoised ones below.

    The last column is the result.
    """

    def fitted(pixels: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
        return _fitting(Image.fromarray(pixels), _WIDEST_IN_STRIP)

    final = fitted(result)
    grid = Grid(
        title,
        columns=[*(f"step {preview.step + 1}" for preview in previews), "result"],
        rows=["noisy latents", "predicted picture"],
        images=[
            [*(fitted(preview.noisy) for preview in previews), Image.new("RGB", final.size, PAPER)],
            [*(fitted(preview.denoised) for preview in previews), final],
        ],
    )
    data = io.BytesIO()
    draw_grid(grid).save(data, "PNG")
    return data.getvalue()


def animation(previews: Sequence[Preview], result: UInt8[np.ndarray, "h w 3"], kind: str) -> bytes:
    """The previews one after the other, for ever: the noisy latents on the left, the denoised ones on the right.

    Args:
      previews: at least one.
      result: shown last, and longest.
      kind: one of `ANIMATIONS`. GIF has 256 colours.
    """
    frames = [_frame(preview.noisy, preview.denoised) for preview in previews] + [_frame(result, result)]
    times = [_EACH] * len(previews) + [_LAST]
    data = io.BytesIO()
    more = {"lossless": True} if kind == "webp" else {"disposal": 2}
    frames[0].save(data, kind.upper(), save_all=True, append_images=frames[1:], duration=times, loop=0, **more)
    return data.getvalue()


def _fitting(image: Image.Image, width: int) -> Image.Image:
    """The image, smaller if it is wider than that."""
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def _frame(left: UInt8[np.ndarray, "h w 3"], right: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    height = left.shape[0]
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    return enlarged(_fitting(Image.fromarray(np.concatenate([left, gap, right], axis=1)), _WIDEST), _NARROWEST)
