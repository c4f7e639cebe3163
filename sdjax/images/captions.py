"""Images side by side with captions: strips of previews, contact sheets, comparison grids."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from sdjax.images.lettering import draw_text, width_of

# Colours of paper and of words, and the size of letters and of the space around images in pixels.
PAPER, INK, FAINT = "#ffffff", "#24292f", "#8c959f"
LETTERS, SPACE = 12, 8
LINE = LETTERS + 3

# Letters of a text that are measured: more don't fit on any page.
_MOST_LETTERS = 2000
_ELLIPSIS = " …"


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """The text in lines of a width in pixels, with an ellipsis where it goes on."""
    found = [""]
    for word in text[:_MOST_LETTERS].split():
        first, *rest = _fitting(word, width)
        joined = f"{found[-1]} {first}" if found[-1] else first
        if not found[-1] or width_of(joined, LETTERS) <= width:
            found[-1] = joined
        else:
            found.append(first)
        found += rest
    if len(found) <= lines and len(text) <= _MOST_LETTERS:
        return found
    last = found[:lines][-1]
    while last and width_of(last + _ELLIPSIS, LETTERS) > width:
        last = last[:-1]
    return [*found[: lines - 1], last + _ELLIPSIS]


def _fitting(word: str, width: int) -> list[str]:
    """A word, in pieces if a line has no room for all of it."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and width_of(pieces[-1] + letter, LETTERS) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces if width_of(word, LETTERS) > width else [word]


class Grid(NamedTuple):
    """Images in rows and columns, each of which has a caption.

    title: above all; may be empty.
    columns, rows: words.
    images: by row and column; None leaves a gap.
    corner: names of what varies along rows and columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    images: Sequence[Sequence[Image.Image | None]]
    corner: tuple[str, str] = ("", "")


# A row's word is at most so wide, and a word has at most so many lines.
_ROW_WIDTH, _LINES = 150, 3
# Smaller images are shown enlarged, by a whole number.
_LEAST_WIDTH = 96


def enlarged(image: Image.Image, least: int = _LEAST_WIDTH) -> Image.Image:
    """The image, larger by a whole factor where it is too small to be seen well."""
    factor = -(-least // image.width)
    size = (image.width * factor, image.height * factor)
    return image if factor == 1 else image.resize(size, Image.Resampling.LANCZOS)


def draw_grid(grid: Grid) -> Image.Image:
    """Draws a grid with its captions."""
    cells = [[image and enlarged(image) for image in row] for row in grid.images]
    there = [image for row in cells for image in row if image]
    width, height = (max((image.size[side] for image in there), default=_LEAST_WIDTH) for side in (0, 1))
    heads = [wrapped(word, width, _LINES) for word in grid.columns]
    sides = [wrapped(word, _ROW_WIDTH, max(_LINES, height // LINE)) for word in grid.rows]
    names = [name for name in grid.corner if name]
    row_words = [*(line for lines in sides for line in lines), *(names[-1:] if grid.corner[0] else [])]
    left = SPACE + round(max((width_of(line, LETTERS) for line in row_words), default=0)) + SPACE
    title = wrapped(grid.title, left + len(heads) * (width + SPACE), _LINES) if grid.title else []
    top = SPACE + len(title) * (LINE + 4) + (LINE if grid.corner[1] else 0)
    top += max((len(lines) for lines in heads), default=0) * LINE + 4
    page = Image.new("RGB", (left + len(heads) * (width + SPACE), top + len(sides) * (height + SPACE)), PAPER)
    draw = ImageDraw.Draw(page)
    for index, line in enumerate(title):
        draw_text(page, (SPACE, SPACE + index * (LINE + 4)), line, INK, LETTERS + 2)
    row_name, column_name = grid.corner
    head_top = SPACE + len(title) * (LINE + 4)
    if column_name:
        draw_text(page, (left, head_top), column_name, FAINT, LETTERS)
    if row_name:
        draw_text(page, (SPACE, top - LINE - 4), row_name, FAINT, LETTERS)
    for column, lines in enumerate(heads):
        for index, line in enumerate(lines):
            place = (left + column * (width + SPACE), top - 4 - (len(lines) - index) * LINE)
            draw_text(page, place, line, INK, LETTERS)
    for row, lines in enumerate(sides):
        upper = top + row * (height + SPACE)
        for index, line in enumerate(lines):
            draw_text(page, (SPACE, upper + index * LINE), line, INK, LETTERS)
        for column, image in enumerate(cells[row]):
            place = (left + column * (width + SPACE), upper)
            if image:
                page.paste(image, place)
            else:
                draw.rectangle((*place, place[0] + width - 1, place[1] + height - 1), outline=FAINT)
    return page


def stacked(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages one below the other."""
    whole = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)), PAPER)
    top = 0
    for page in pages:
        whole.paste(page, (0, top))
        top += page.height
    return whole
