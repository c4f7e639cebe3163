"""The steps of an image as a strip and as an animation."""

import io

import numpy as np
import pytest
from PIL import Image

from sdjax.images.captions import Grid, draw_grid, wrapped
from sdjax.images.previews import ANIMATIONS, Preview, animation, strip

RESULT = np.full((100, 120, 3), (250, 250, 0), np.uint8)
PREVIEWS = [
    Preview(step, np.full_like(RESULT, (step * 20, 0, 0)), np.full_like(RESULT, (0, step * 20, 0)))
    for step in (0, 4, 8)
]


def found(pixels, colour):
    """The corner and the size of the area of one colour."""
    rows, columns = np.nonzero((pixels == colour).all(axis=-1))
    return (rows.min(), columns.min()), (np.ptp(rows) + 1, np.ptp(columns) + 1)


def test_a_strip_has_noisy_latents_above_predictions_from_left_to_right():
    pixels = np.asarray(Image.open(io.BytesIO(strip(PREVIEWS, RESULT, "a cat"))))
    lefts = []
    for step in (4, 8):
        (top, left), size = found(pixels, (step * 20, 0, 0))
        (below, same), _ = found(pixels, (0, step * 20, 0))
        assert size == (100, 120) and below >= top + 100 and same == left
        lefts.append(left)
    (_, last), size = found(pixels, (250, 250, 0))
    assert size == (100, 120) and lefts[0] < lefts[1] < last


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_an_animation_shows_the_steps_and_then_the_result(kind):
    with Image.open(io.BytesIO(animation(PREVIEWS, RESULT, kind))) as moving:
        assert moving.format == kind.upper() and moving.n_frames == 4 and moving.info.get("loop") == 0
        for index, expected in enumerate((0, 4, 8)):
            moving.seek(index)
            pixels = np.asarray(moving.convert("RGB")).astype(int)
            assert abs(pixels[50, 50] - (expected * 20, 0, 0)).max() <= 2
            assert abs(pixels[50, -50] - (0, expected * 20, 0)).max() <= 2
        moving.seek(3)
        assert abs(np.asarray(moving.convert("RGB")).astype(int)[50, 50] - (250, 250, 0)).max() <= 4


def test_small_images_are_enlarged_and_gaps_are_left():
    small = Image.new("RGB", (10, 20), "#0000ff")
    page = draw_grid(Grid("", ["one", "two"], ["row"], [[small, None]]))
    _, size = found(np.asarray(page), (0, 0, 255))
    assert size == (200, 100)


def test_words_are_wrapped_and_end_with_an_ellipsis():
    lines = wrapped("a very long prompt " * 20, 120, 3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert wrapped("", 120, 3) == [""]
