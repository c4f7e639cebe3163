"""Draws what classifier guidance does: a row for each label, a column for each scale, one seed for all.

    python examples/classifier_guidance.py docs/images/classifier_guidance.png

The prompt is empty and there is no other guidance, so what appears comes from the classifier alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import sdjax
from sdjax.images.captions import Grid, draw_grid

LABELS = ("red apple", "sunflower", "traffic light", "red heart", "panda", "penguin")
SCALES = (0.0, 1.0, 4.0, 16.0, 64.0, 128.0)


def images(
    labels: Sequence[str], scales: Sequence[float], *, seed: int, steps: int, sampler: str
) -> list[list[np.ndarray]]:
    """For each label one image per scale, all from the same noise."""
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
    rows = images(options.labels, options.scales, seed=options.seed, steps=options.steps, sampler=options.sampler)
    tiles = [[Image.fromarray(image) for image in row] for row in rows]
    scales = [f"{scale:g}" for scale in options.scales]
    draw_grid(Grid("", scales, options.labels, tiles, ("label", "classifier_scale"))).save(options.file)


if __name__ == "__main__":
    main()
