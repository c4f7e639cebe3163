"""A contact sheet: the pictures of an output side by side, their prompts below."""

import io
import textwrap

from PIL import Image, ImageDraw, ImageFont

from pipelines import storage
from pipelines.generate import METADATA
from sdjax.images.encode import decode

# In pixels: the width of a picture on the sheet, the space around, the size of letters, lines per prompt.
_WIDTH, _SPACE, _LETTERS, _LINES = 144, 10, 12, 3
_PAPER, _INK, _FAINT = "#ffffff", "#24292f", "#8c959f"


def write(out: str, target: str, *, columns: int, limit: int) -> int:
    """Draws the pictures of an output, sorted by prompt and seed; gives how many there are on the sheet.

    Args:
      out: an output of `generate`.
      target: a PNG file, written whole or not at all.
      columns: pictures in a row, at least 1.
      limit: pictures at most; what does not fit is said on the sheet.

    Raises:
      ValueError: if there are no pictures, or columns or limit are not positive.
      StorageError: if the output can't be read or the sheet not be written.
    """
    if columns < 1 or limit < 1:
        raise ValueError(f"columns = {columns}, limit = {limit}: expected at least 1")
    rows = []
    for number, row in enumerate(storage.read_jsonl(storage.join(out, METADATA)), 1):
        if not {"file_name", "prompt", "seed", "width", "height"} <= row.keys():
            raise storage.StorageError(f"{storage.join(out, METADATA)}, line {number}: not what generate writes")
        rows.append(row)
    rows.sort(key=lambda row: (row["prompt"], row["seed"]))
    if not rows:
        raise ValueError(f"{out}: there are no pictures in it yet")
    shown = rows[:limit]
    font = ImageFont.load_default(_LETTERS)
    line = _LETTERS + 3
    tallest = max(round(_WIDTH * row["height"] / row["width"]) for row in shown)
    cell = (_WIDTH + _SPACE, tallest + _LINES * line + 2 * _SPACE)
    columns = min(columns, len(shown))
    height = -(-len(shown) // columns) * cell[1] + _SPACE + (line if len(shown) < len(rows) else 0)
    page = Image.new("RGB", (columns * cell[0] + _SPACE, height), _PAPER)
    draw = ImageDraw.Draw(page)
    for index, row in enumerate(shown):
        left, top = index % columns * cell[0] + _SPACE, index // columns * cell[1] + _SPACE
        path = storage.join(out, *row["file_name"].split("/"))
        picture = Image.fromarray(decode(storage.read_whole(path), path))
        size = (_WIDTH, round(_WIDTH * row["height"] / row["width"]))
        page.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top))
        for number, text in enumerate(_wrapped(row["prompt"] or "(no prompt)", font)):
            draw.text((left, top + tallest + 4 + number * line), text, fill=_INK, font=font)
    if len(shown) < len(rows):
        draw.text((_SPACE, height - line), f"{len(rows) - len(shown)} more in {METADATA}", fill=_FAINT, font=font)
    data = io.BytesIO()
    page.save(data, "PNG")
    storage.write_whole(target, data.getvalue())
    return len(shown)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines that fit under a picture, with an ellipsis where it goes on."""
    letters = int(_WIDTH / font.getlength("abcdefghij ") * 11)
    return textwrap.wrap(" ".join(text.split()), letters, max_lines=_LINES, placeholder=" …")
