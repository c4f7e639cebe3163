"""Words in images: each letter from a font that has it, and the rest is told."""

import numpy as np
import pytest
from PIL import Image

from sdjax.images.captions import LETTERS, Grid, draw_grid, wrapped
from sdjax.images.lettering import draw_text, width_of, without_font

# In no font of any machine: a letter that is nobody's.
NOBODYS = "\U000ffff0"


def drawn(text: str) -> np.ndarray:
    page = Image.new("RGB", (64, 32), "#ffffff")
    draw_text(page, (0, 0), text, "#000000", 24)
    return np.asarray(page)


def test_letters_that_no_font_has_are_told_once_each():
    assert without_font(["a red cat", "Straße, éà"]) == ""
    assert without_font([f"a {NOBODYS} b", NOBODYS * 2, "c"]) == NOBODYS


@pytest.mark.parametrize("letter", ["猫", "か", "한", "ق", "ж", "ש", "ก"])
def test_a_letter_is_drawn_as_it_is_or_told(letter):
    """Whatever fonts this machine has."""
    is_box = np.array_equal(drawn(letter), drawn(NOBODYS))
    assert is_box == (without_font([letter]) == letter)


def test_blanks_and_marks_of_form_need_no_font():
    assert without_font(["a\u3000b\u200d\ufe0f\u0301"]) == ""


@pytest.mark.parametrize(
    "text", ["a very long prompt " * 20, "猫" * 500, "no" * 400, "a " + "é" * 90, "قطة حمراء " * 30]
)
def test_lines_are_as_wide_as_their_letters_and_none_is_wider_than_there_is_room(text):
    lines = wrapped(text, 120, 3)
    assert len(lines) == 3 and lines[-1].endswith(" …") and all(width_of(line, LETTERS) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "")[:10] == text.replace(" ", "")[:10]


def test_short_texts_stay_whole():
    assert wrapped("a cat", 120, 3) == ["a cat"] and wrapped("", 120, 3) == [""]
    assert wrapped("one two three four", 60, 9) == ["one two", "three four"]


def test_labels_of_any_letters_are_on_a_grid():
    image = Image.new("RGB", (96, 96), "#808080")
    words = ["かわいい猫", "قطة حمراء", "a cat 😀", NOBODYS]
    with_words = np.asarray(draw_grid(Grid("猫", words, ["row"], [[image] * 4])))
    without = np.asarray(draw_grid(Grid("猫", [" "] * 4, ["row"], [[image] * 4])))
    assert with_words.shape == without.shape and (with_words != without).any()
