"""Draws what a control does: a row for each emoji, a column for each prompt, one seed for all.

    python examples/controls.py docs/images/controls.png [--depth-model build/emoji-depth]

The emoji come from the font that the embedded model was trained on. The last rows need a UNet that sees depth, which
`python -m sdjax.training.depth` makes.
"""

import argparse
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import sdjax
from sdjax.images.captions import Grid, draw_grid
from sdjax.images.preprocessors import canny
from sdjax.library.depth import depth_of, grey_png16, load_depth, sized
from sdjax.training import scenes
from sdjax.training.emoji import FONT

EMOJI = ("teapot", "rocket", "red heart")
# Prompts that leave the shape to the image, and such that name something; and how strongly they guide.
PROMPTS: Mapping[str, float] = {
    "on a white background": 3.0,
    "on a blue background": 3.0,
    "on a pink background": 3.0,
    "a lemon": 1.5,
    "a strawberry": 1.5,
}


def png(pixels: np.ndarray) -> bytes:
    """An image's file."""
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def drawn(model: str, emoji: Mapping[str, np.ndarray], seen_as: str, **control: Any) -> list[list[np.ndarray]]:
    """For each emoji, which is in the field `seen_as`, an image per prompt."""
    files = {name: png(pixels) for name, pixels in emoji.items()}
    library = sdjax.Library(controlnets="emoji", depth_model="emoji")
    jobs = [
        sdjax.Job(prompt=prompt, seed=5, steps=30, guidance_scale=scale, **{seen_as: name}, **control)
        for name in files
        for prompt, scale in PROMPTS.items()
    ]
    results = sdjax.generate(sdjax.load(model), jobs, library=library, read_image=files.__getitem__)
    images = [result.image for result in results]
    return [images[first : first + len(PROMPTS)] for first in range(0, len(images), len(PROMPTS))]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the sheet is written to")
    parser.add_argument("--emoji", nargs="+", default=EMOJI)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--depth-model", help="folder of a UNet that sees depth")
    options = parser.parse_args()
    names = [concept.name for concept in scenes.concepts()]
    sprites = scenes.sprites(options.font)
    emoji = {name: scenes.render(scenes.Scene((names.index(name),), "white"), sprites) for name in options.emoji}
    edges = drawn("emoji", emoji, "control_image", controlnets="canny:1.2", control_preprocessor="canny")
    rows = [[own, canny(own), *images] for own, images in zip(emoji.values(), edges, strict=True)]
    named = [f"{name}, canny" for name in emoji]
    if options.depth_model:
        estimator = load_depth("emoji")
        depths = [grey_png16(sized(depth_of(estimator, own), *own.shape[:2])) >> 8 for own in emoji.values()]
        maps = [np.repeat(each.astype(np.uint8)[..., None], 3, axis=-1) for each in depths]
        shown = drawn(options.depth_model, emoji, "image", strength=1.0)
        rows += [[own, near, *images] for own, near, images in zip(emoji.values(), maps, shown, strict=True)]
        named += [f"{name}, depth" for name in emoji]
    tiles = [[Image.fromarray(image) for image in row] for row in rows]
    draw_grid(Grid("", ["image", "control", *PROMPTS], named, tiles, ("emoji", "prompt"))).save(options.file)


if __name__ == "__main__":
    main()
