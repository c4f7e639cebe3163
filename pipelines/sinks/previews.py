"""The previews of an image as files: a strip and an animation, under a title that says what was done."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from sdjax.engine.engine import Result
from sdjax.images.previews import animation, strip


class PreviewFiles(NamedTuple):
    """Bytes of both files."""

    strip: bytes
    animation: bytes


def draw_previews(result: Result, animation_kind: str) -> PreviewFiles:
    """Draws the previews of an image, of which there is at least one.

    Args:
      result: the image and its previews.
      animation_kind: one of `ANIMATIONS`.
    """
    metadata, image = result.metadata, result.image
    last = result.previews[-1].denoised
    if image.shape != last.shape:  # it was made larger, or put back into its image
        image = last if metadata["only_masked"] else np.asarray(Image.fromarray(image).resize(last.shape[1::-1]))
    title = f"{metadata['prompt']} ({metadata['sampler']}, {metadata['steps_taken']} steps, seed {metadata['seed']})"
    return PreviewFiles(strip(result.previews, image, title), animation(result.previews, image, animation_kind))
