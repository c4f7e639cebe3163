"""Draws what classifier guidance does: a row for each label, a column for each scale, one seed for all.

    python examples/classifier_guidance.py docs/images/classifier_guidance.png

The prompt is empty and there is no other guidance, so what appears comes from the classifier alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import sdjax

LABELS = ("red apple", "sunflower", "traffic light", "red heart", "panda", "penguin")
SCALES = (0.0, 1.0, 4.0, 16.0, 64.0, 128.0)
# Of the sheet, in pixels.
_TILE, _GAP, _LEFT, _TOP, _TEXT = 128, 4, 130, 56, 18


def pictures(
    labels: Sequence[str], scales: Sequence[float], *, seed: int, steps: int, sampler: str
) -> list[list[np.ndarray]]:
    """For each label one picture per scale, all from the same noise."""
    classifier = sdjax.load_classifier("emoji")
    engine = sdjax.Engine(sdjax.load("emoji"), classifier=classifier)
    jobs = [
        sdjax.Job(
            prompt="",
            guidance_scale=1,
            seed=seed,
            steps=steps,
            sampler=sampler,
            classifier_scale=scale,
            classifier_label=sdjax.label_named(classifier, label),
        )
        for label in labels
        for scale in scales
    ]
    tasks = [engine.prepare(job) for job in jobs]
    found = {result.metadata["id"]: result.image for result in engine.run(tasks)}
    images = [found[task.id] for task in tasks]
    return [images[start : start + len(scales)] for start in range(0, len(images), len(scales))]


def sheet(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], scales: Sequence[float]) -> Image.Image:
    """The pictures as a grid with its axes named."""
    step = _TILE + _GAP
    canvas = Image.new("RGB", (_LEFT + step * len(scales), _TOP + step * len(labels)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT)
    draw.text((_LEFT + step * len(scales) / 2, 4), "classifier_scale", "black", font, anchor="ma")
    for column, scale in enumerate(scales):
        draw.text((_LEFT + step * column + _TILE / 2, _TOP - 8), f"{scale:g}", "black", font, anchor="ms")
    for row, (label, images) in enumerate(zip(labels, rows, strict=True)):
        draw.text((_LEFT - 10, _TOP + step * row + _TILE / 2), label, "black", font, anchor="rm")
        for column, image in enumerate(images):
            tile = Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            canvas.paste(tile, (_LEFT + step * column, _TOP + step * row))
    return canvas


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the sheet is written to")
    parser.add_argument("--labels", nargs="+", default=LABELS)
    parser.add_argument("--scales", nargs="+", type=float, default=SCALES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpmpp_2m")
    options = parser.parse_args()
    rows = pictures(options.labels, options.scales, seed=options.seed, steps=options.steps, sampler=options.sampler)
    sheet(rows, options.labels, options.scales).save(options.file)


if __name__ == "__main__":
    main()
