import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdjax.training.scenes import COLORS, SIZE, Scene, caption, concepts, draw_scene, examples, render, sprites

NAMES = tuple(concept.name for concept in concepts())
# A full square in a colour that no background has.
MARK = (1, 254, 77)
SQUARES = (Image.new("RGBA", (136, 136), (*MARK, 255)),) * len(NAMES)

seeds = st.integers(0, 2**32)


def scenes_of(count, seed=0):
    return [draw_scene(np.random.default_rng([seed, index]), len(NAMES)) for index in range(count)]


def drawn(scene):
    """Where the squares are: a mask of the image."""
    return (render(scene, SQUARES) == MARK).all(-1)


def boxes(mask):
    """(left, right) of each group of columns with something in them, and (top, bottom) of all."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    return [(group[0], group[-1] + 1) for group in groups], (rows[0], rows[-1] + 1)


# --- The concepts ---


def test_there_are_at_least_300_concepts_each_with_its_own_name_and_emoji():
    assert len(NAMES) >= 300
    assert len(set(NAMES)) == len({concept.codepoint for concept in concepts()}) == len(NAMES)


def test_names_are_plain_lower_case_words():
    assert [name for name in NAMES if not re.fullmatch("[a-z0-9'-]+( [a-z0-9'-]+)*", name)] == []


def test_a_font_that_is_not_there_is_told_with_the_way_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        sprites(tmp_path / "NotoColorEmoji.ttf")


# --- What is drawn ---


def test_every_concept_and_colour_is_drawn():
    seen = scenes_of(6000)
    assert {index for scene in seen for index in scene.concepts} == set(range(len(NAMES)))
    assert {scene.color for scene in seen} == set(COLORS)


def test_concepts_are_drawn_about_equally_often_in_every_place_of_a_pair():
    first, second = zip(*(scene.concepts for scene in scenes_of(20000) if len(scene.concepts) == 2), strict=True)
    for places in (first, second):
        # A twentieth of the concepts is drawn about a twentieth of the time.
        counts = Counter(index * 20 // len(NAMES) for index in places)
        np.testing.assert_allclose([counts[part] / len(places) for part in range(20)], 0.05, atol=0.025)


def test_scenes_have_one_emoji_or_two_different_ones_small_or_large_left_or_right():
    seen = scenes_of(3000)
    kinds = {(len(scene.concepts), scene.size, scene.side) for scene in seen}
    sizes, sides = ("", "small", "large"), ("", "left", "right")
    one = {(1, size, side) for size, side in itertools.product(sizes, sides) if not (size == "large" and side)}
    assert kinds == one | {(2, "", "")}
    assert all(len(set(scene.concepts)) == len(scene.concepts) for scene in seen)
    assert 0.06 < np.mean([len(scene.concepts) == 2 for scene in seen]) < 0.11


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(0, 1000))
def test_the_nth_scene_of_a_seed_is_always_the_same(seed, start):
    from_start = itertools.islice(examples(seed, SQUARES, start), 3)
    for offset, (pixels, text, scene) in enumerate(from_start):
        again, same_text, same_scene = next(examples(seed, SQUARES, start + offset))
        np.testing.assert_array_equal(pixels, again)
        assert (text, scene) == (same_text, same_scene)


def test_other_seeds_give_other_scenes():
    texts = [[text for _, text, _ in itertools.islice(examples(seed, SQUARES), 5)] for seed in (0, 1)]
    assert texts[0] != texts[1]


# --- Captions ---


@given(seeds)
def test_a_caption_says_what_is_in_the_scene_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, len(NAMES))
    text = caption(rng, scene, NAMES)
    rest = text
    for index in scene.concepts:
        assert NAMES[index] in rest
        rest = rest.replace(NAMES[index], "", 1)
    for word in ("small", "large"):
        assert (word in rest.split()) == (scene.size == word)
    for word in ("left", "right"):
        assert (f"on the {word}" in rest) == (scene.side == word)
    if "background" in rest:
        assert re.search(rf"on an? {scene.color} background$", rest)
    for words in ("an emoji of", "background", scene.color, scene.size, f"on the {scene.side}", "next to"):
        rest = rest.replace(words, "", 1) if words else rest
    assert set(rest.split()) <= {"a", "an", "and", "on"}


@given(seeds)
def test_articles_fit_the_word_that_follows(seed):
    rng = np.random.default_rng(seed)
    text = caption(rng, draw_scene(rng, len(NAMES)), NAMES)
    inside = [name for name in NAMES if re.search(r"\b(a|an) ", name)]
    assert inside == [] and not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_colour_is_said_half_of_the_time():
    texts = [text for _, text, _ in itertools.islice(examples(3, SQUARES), 1000)]
    assert 0.44 < np.mean(["background" in text for text in texts]) < 0.56


# --- Images ---


@given(seeds)
def test_no_emoji_leaves_the_image_or_covers_another(seed):
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, len(NAMES))
    mask = drawn(scene)
    for left, right in boxes(mask)[0]:
        # A square that were cut at an edge would not be one.
        rows = np.flatnonzero(mask[:, left])
        assert right - left == rows[-1] + 1 - rows[0]
        assert mask[rows[0] : rows[-1] + 1, left:right].all()
    assert len(boxes(mask)[0]) == len(scene.concepts)


@pytest.mark.parametrize("color", COLORS)
def test_the_background_is_of_the_colour_asked_for(color):
    pixels = render(Scene((0,), color, "small"), SQUARES)
    assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8
    mask = (pixels == MARK).all(-1)
    assert (pixels[~mask] == COLORS[color]).all()


def test_small_is_smaller_and_large_is_larger():
    areas = [drawn(Scene((0,), "white", size)).sum() for size in ("small", "", "large")]
    assert areas[0] < areas[1] / 2 and areas[1] < areas[2]


@pytest.mark.parametrize("size", ["", "small"])
def test_left_is_left_and_right_is_right(size):
    [(_, end)], _ = boxes(drawn(Scene((0,), "white", size, "left")))
    [(start, _)], _ = boxes(drawn(Scene((0,), "white", size, "right")))
    assert end <= SIZE / 2 <= start


def test_two_stand_side_by_side_in_the_order_in_which_they_are_named():
    images = tuple(Image.new("RGBA", (8, 8), color) for color in ((*MARK, 255), (255, 0, 200, 255)))
    pixels = render(Scene((1, 0), "black"), images)
    one, two = ((pixels == image.getpixel((0, 0))[:3]).all(-1) for image in images)
    assert boxes(two)[0][0][1] <= SIZE / 2 <= boxes(one)[0][0][0]


def test_a_transparent_sprite_lets_the_background_through():
    clear = (Image.new("RGBA", (8, 8), (*MARK, 0)),)
    pixels = render(Scene((0,), "sky blue"), clear)
    assert (pixels == COLORS["sky blue"]).all()
