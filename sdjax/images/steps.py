"""How a picture came about: the steps that were kept, as a strip and as an animation."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sdjax.images.captions import PAPER, Grid, draw_grid, enlarged
from sdjax.images.encode import MAX_PIXELS, PictureError

ANIMATIONS = ("webp", "gif")
# Of an animation, in milliseconds.
_EACH, _LAST = 200, 1500
# Of a frame, and of a picture in a strip, in pixels: larger ones are made smaller.
_NARROWEST, _WIDEST, _WIDEST_IN_STRIP = 256, 2048, 256
# Frames of an animation: of all steps that are kept, and the result.
_MOST_FRAMES = 65
# Between the two pictures of a frame, in pixels.
_GAP = 4


class Preview(NamedTuple):
    """A step on the way: what the network was given, and the clean picture that it expected. sRGB."""

    step: int
    noisy: UInt8[np.ndarray, "h w 3"]
    clean: UInt8[np.ndarray, "h w 3"]


def check_steps(data: bytes, name: str) -> None:
    """Reads a strip or an animation whole; raises `PictureError` if it is damaged, or larger than any of ours."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "GIF")) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > _MOST_FRAMES or frames * image.width * image.height > _MOST_FRAMES * MAX_PIXELS // 16:
                raise PictureError(
                    f"{name}: {frames} frames of {image.width}x{image.height} pixels, more than are kept"
                )
            for frame in range(frames):
                image.seek(frame)
                image.load()
    except PictureError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more
        raise PictureError(f"{name}: damaged kept steps: {error}") from error


def strip(previews: Sequence[Preview], result: UInt8[np.ndarray, "h w 3"], title: str) -> bytes:
    """All kept steps from left to right, as a PNG: the noisy latents above, below what the network expected.

    The last column is the result.
    """

    def shown(pixels: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
        return _fitting(Image.fromarray(pixels), _WIDEST_IN_STRIP)

    final = shown(result)
    grid = Grid(
        title,
        columns=[*(f"step {preview.step + 1}" for preview in previews), "result"],
        rows=["noisy latents", "predicted picture"],
        pictures=[
            [*(shown(preview.noisy) for preview in previews), Image.new("RGB", final.size, PAPER)],
            [*(shown(preview.clean) for preview in previews), final],
        ],
    )
    data = io.BytesIO()
    draw_grid(grid).save(data, "PNG")
    return data.getvalue()


def animation(previews: Sequence[Preview], result: UInt8[np.ndarray, "h w 3"], kind: str) -> bytes:
    """The kept steps one after the other, for ever: left the noisy latents, right what the network expected.

    Args:
      previews: at least one.
      result: shown last, and longest.
      kind: one of `ANIMATIONS`. GIF has 256 colours.
    """
    frames = [_frame(preview.noisy, preview.clean) for preview in previews] + [_frame(result, result)]
    times = [_EACH] * len(previews) + [_LAST]
    data = io.BytesIO()
    more = {"lossless": True} if kind == "webp" else {"disposal": 2}
    frames[0].save(data, kind.upper(), save_all=True, append_images=frames[1:], duration=times, loop=0, **more)
    return data.getvalue()


def _fitting(picture: Image.Image, width: int) -> Image.Image:
    """The picture, smaller if it is wider than that."""
    if picture.width <= width:
        return picture
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)


def _frame(left: UInt8[np.ndarray, "h w 3"], right: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    height = left.shape[0]
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    return enlarged(_fitting(Image.fromarray(np.concatenate([left, gap, right], axis=1)), _WIDEST), _NARROWEST)
