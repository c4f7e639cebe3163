"""Text in images, in any script: each letter from a font of this machine that has it.

Pillow's own font has Latin letters. For others fontconfig is asked, where it is installed, for a font with the letter;
Pillow's layout engine joins Arabic letters and puts them from right to left. A letter that no font has is a box, and
`without_font` says which these are.
"""

import bisect
import contextlib
import functools
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Iterator

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# No character, and so in no font: what is drawn for it is what is drawn for all that a font lacks.
_IN_NO_FONT = "\U0010fffe"
# Pixels of the only size of fonts whose letters are images: Noto's emoji.
_BITMAP_SIZE = 109
_SECONDS = 10.0
# Weight and slant of fonts, as fontconfig writes them: regular, upright.
_USUAL = ("80", "0")


def draw_text(page: Image.Image, place: tuple[int, int], text: str, fill: str, size: int) -> None:
    """Draws a line of text.

    Args:
      page: on which it is drawn; RGB.
      place: left and top, in pixels.
      text: without line breaks.
      fill: colour of letters that have none themselves.
      size: of letters, in pixels.
    """
    left, baseline = float(place[0]), place[1] + _ascent(size)
    draw = ImageDraw.Draw(page)
    for file, part in _runs(text):
        font = _opened(file, size)
        if font is None:
            image = _bitmap(file, part, size)
            page.paste(image, (round(left), place[1]), image)
            left += image.width
        else:
            draw.text((left, baseline), part, fill=fill, font=font, anchor="ls")
            left += font.getlength(part)


def width_of(text: str, size: int) -> float:
    """The width of a line of text in pixels."""
    return sum(_run_width(file, part, size) for file, part in _runs(text))


def without_font(texts: Iterable[str]) -> str:
    """The letters that no font here has, each once and sorted."""
    letters = {letter for text in texts for letter in text if not _is_blank(letter)}
    return "".join(sorted(letter for letter in letters if _font_of(letter) is None))


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """The text in parts, each with the file of a font that has it; "" is Pillow's own.

    What has no direction of its own, as blanks, stays with the letters before it.
    """
    file, part = "", ""
    for letter in text:
        stays = file if part and _has(file, letter) and (file or letter.isascii()) else None
        found = stays if stays is not None else (_font_of(letter) or "")
        if part and found != file:
            yield file, part
            part = ""
        file, part = found, part + letter
    if part:
        yield file, part


@functools.lru_cache(maxsize=65536)
def _font_of(letter: str) -> str | None:
    """The file of a font that has a letter; None if there is none."""
    if _is_blank(letter) or _has("", letter):
        return ""
    found = _matched(letter)
    return found if found and _has(found, letter) else None


def _is_blank(letter: str) -> bool:
    """Whether nothing is to be seen of it: spaces, joiners, selectors of a form."""
    return letter.isspace() or unicodedata.category(letter) in ("Cf", "Mn", "Cc")


@functools.lru_cache(maxsize=65536)
def _has(file: str, letter: str) -> bool:
    if _is_blank(letter):
        return True
    font = _opened(file, 32) or ImageFont.truetype(file, _BITMAP_SIZE)
    return bytes(font.getmask(letter)) != bytes(font.getmask(_IN_NO_FONT))


def _matched(letter: str) -> str | None:
    """The file of the first font that fontconfig says has a letter, and that Pillow can read."""
    code = ord(letter)
    for file, ranges in _fonts():
        place = bisect.bisect_right(ranges, (code, sys.maxunicode)) - 1
        if place >= 0 and code <= ranges[place][1] and _opens(file):
            return file
    return None


@functools.cache
def _fonts() -> tuple[tuple[str, tuple[tuple[int, int], ...]], ...]:
    """Files of fonts and the codes of their letters, from and to: upright ones of usual weight first."""
    command = ["fc-list", "--format=%{weight}|%{slant}|%{charset}|%{file}\n"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = []
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        weight, slant, letters, file = (*line.split("|", 3), "", "", "")[:4]
        spans = [span.partition("-") for span in letters.split()]
        with contextlib.suppress(ValueError):
            ranges = sorted((int(first, 16), int(last or first, 16)) for first, _, last in spans)
            found.append(((weight, slant) != _USUAL, file, tuple(ranges)))
    return tuple((file, ranges) for _, file, ranges in sorted(found))


@functools.cache
def _opens(file: str) -> bool:
    try:
        ImageFont.truetype(file, _BITMAP_SIZE)
    except OSError:  # a font of another kind, or gone
        return False
    return True


@functools.lru_cache(maxsize=256)
def _opened(file: str, size: int) -> Font | None:
    """A font in a size; None if its letters are images of one size."""
    if not file:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(file, size)
    except OSError:
        return None


def _ascent(size: int) -> int:
    """Pixels from the top of a line to the baseline, on which letters of all fonts stand."""
    font = _opened("", size)
    return font.getmetrics()[0] if isinstance(font, ImageFont.FreeTypeFont) else size


def _run_width(file: str, part: str, size: int) -> float:
    font = _opened(file, size)
    return float(_bitmap(file, part, size).width) if font is None else font.getlength(part)


@functools.lru_cache(maxsize=1024)
def _bitmap(file: str, part: str, size: int) -> Image.Image:
    """Letters that are images, at a size; RGBA."""
    font = ImageFont.truetype(file, _BITMAP_SIZE)
    left, top, right, bottom = font.getbbox(part)
    image = Image.new("RGBA", (max(1, round(right - left)), max(1, round(bottom - top))))
    ImageDraw.Draw(image).text((-left, -top), part, font=font, embedded_color=True)
    return image.resize((max(1, round(image.width * size / image.height)), size), Image.Resampling.LANCZOS)
