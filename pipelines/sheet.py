"""A contact sheet: the images of an output side by side, their prompts below."""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from pipelines.sinks import open_output
from sdjax import storage
from sdjax.images.captions import FAINT, INK, LETTERS, LINE, PAPER, wrapped
from sdjax.images.encode import decode
from sdjax.images.lettering import draw_text, without_font

# In pixels: the width of an image on the sheet, the space around; lines per prompt.
_WIDTH, _SPACE, _LINES = 144, 10, 3
# What is taller is made narrower.
_TALLEST = 4 * _WIDTH


def write(out: str, target: str, *, columns: int, limit: int) -> tuple[int, str]:
    """Draws the images of an output, sorted by prompt and seed.

    Gives how many there are on the sheet, and the letters of their prompts that no font here has.

    Args:
      out: an output of `generate`.
      target: a PNG file, written whole or not at all.
      columns: images in a row, at least 1.
      limit: images at most; what does not fit is said on the sheet.

    Raises:
      ValueError: if there are no images, or columns or limit are not positive.
      StorageError: if the output can't be read or the sheet not be written.
    """
    if columns < 1 or limit < 1:
        raise ValueError(f"columns = {columns}, limit = {limit}: expected at least 1")
    sink = open_output(out)
    rows = sorted(sink.rows(), key=lambda row: (row["prompt"], row["seed"]))
    if not rows:
        raise ValueError(f"{out}: there are no images in it yet")
    drawn_rows = rows[:limit]
    tallest = max(_size(row)[1] for row in drawn_rows)
    cell = (_WIDTH + _SPACE, tallest + _LINES * LINE + 2 * _SPACE)
    columns = min(columns, len(drawn_rows))
    height = -(-len(drawn_rows) // columns) * cell[1] + _SPACE + (LINE if len(drawn_rows) < len(rows) else 0)
    page = Image.new("RGB", (columns * cell[0] + _SPACE, height), PAPER)
    drawn: list[str] = []
    for index, row in enumerate(drawn_rows):
        left, top = index % columns * cell[0] + _SPACE, index // columns * cell[1] + _SPACE
        name = row["file_name"]
        image = Image.fromarray(decode(sink.read(name), name))
        page.paste(image.resize(_size(row), Image.Resampling.LANCZOS), (left, top))
        lines = wrapped(row["prompt"] or "(no prompt)", _WIDTH, _LINES)
        drawn += lines
        for number, text in enumerate(lines):
            draw_text(page, (left, top + tallest + 4 + number * LINE), text, INK, LETTERS)
    if len(drawn_rows) < len(rows):
        more = f"{len(rows) - len(drawn_rows)} more in this output"
        draw_text(page, (_SPACE, height - LINE), more, FAINT, LETTERS)
    data = io.BytesIO()
    page.save(data, "PNG")
    storage.write_whole(target, data.getvalue())
    return len(drawn_rows), without_font(drawn)


def _size(row: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of an image on the sheet."""
    scale = min(_WIDTH / row["width"], _TALLEST / row["height"])
    return max(1, round(row["width"] * scale)), max(1, round(row["height"] * scale))
