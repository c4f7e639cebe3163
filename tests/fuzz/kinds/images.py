"""Metadata in PNG, WebP and JPEG: hostile texts, EXIF data, XMP; and images that are bombs, damaged or cut off.

Each file is read through all that `inspect`, `verify` and the reader of input images use.
"""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.inspect import describe
from sdjax.images import metadata as metadata_text
from sdjax.images.decode import ImageError
from sdjax.images.encode import decode, describe_image, read_metadata, read_parameters
from sdjax.images.read import read_grey, read_image

# A message is for people.
_MOST_LETTERS = 1000
_PIXELS = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)
# Repeated so often at most.
_MOST = 200_000

_TEXTS = (
    "", "a cat\nNegative prompt: a dog\nSteps: 3, Sampler: Euler, Seed: 1", "<sdjax:metadata>", "</sdjax:metadata>",
    "\0", "\x1b[31m\x07", "\u202e\u200b漢字😀", "\ufeff", "tiff:Orientation=\"6", "tiff:Orientation>", "&lt;&amp;",
    "{", "[", '{"a":', "[],", '"prompt": "x",', "9" * 50, "1e999", "NaN", "\\ud800", "Steps: ", ": , ", "\n",
)  # fmt: skip
_JSON = (
    '{"a":1}',
    "[1]",
    "7",
    "{",
    '{"a":[[[[[[1]]]]]]}',
    '{"a":' + "9" * 5000 + "}",
    '{"a":1e999}',
    '{"\\ud800":"\\u0000"}',
)


def text(rng: random.Random) -> str:
    """Pieces, some of them very often."""
    pieces = [
        rng.choice(_TEXTS) * (rng.choice((1, 1, 2, 80, 1000, _MOST)) if rng.random() < 0.5 else 1)
        for _ in range(rng.randint(1, 3))
    ]
    return "".join(pieces)[: rng.choice((40, 4000, 2_000_000))]


def metadata(rng: random.Random) -> str:
    """What stands in the place of sdjax' metadata."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(_JSON)
    if kind == 1:
        return "[" * rng.choice((5, 900, 100_000))
    if kind == 2:
        return '{"a":[' + "[]," * rng.choice((10, _MOST)) + "[]]}"
    if kind == 3:
        return json.dumps({rng.choice(_TEXTS): rng.choice((1, None, True, text(rng), 2**70)) for _ in range(4)})
    return text(rng)


# --- EXIF and XMP ---


def entry(rng: random.Random, order: str, size: int) -> bytes:
    """One entry of a directory, sound or not."""
    tag = rng.choice((0x0112, 0x8769, 0x9286, 0x8825, 0xA005, 0x011A, rng.randrange(1 << 16)))
    kind = rng.choice((*range(14), 16, 255))
    count = rng.choice((0, 1, 2, size, size // 2, 1 << 31, (1 << 32) - 1))
    value = rng.choice((0, 6, 8, size - 4, 1 << 31, rng.randrange(size + 1)))
    return struct.pack(f"{order}HHII", tag, kind, count, max(value, 0))


def exif(rng: random.Random) -> bytes:
    """EXIF data: a sound comment, directories that point to themselves or all to the same bytes, or anything."""
    order, mark = rng.choice((("<", b"II"), (">", b"MM")))
    comment = rng.choice((b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"")) + rng.choice(
        (text(rng).encode("utf-16-be", "replace"), text(rng).encode("utf-8", "replace"), rng.randbytes(50))
    )
    if rng.random() < 0.3:
        head = struct.pack(f"{order}HHHII", 1, 0x8769, 4, 1, 26) + bytes(4)
        body = head + struct.pack(f"{order}HHHIII", 1, 0x9286, 7, len(comment), 44, 0) + comment
    else:
        count = rng.choice((0, 1, 3, 100, 5000, 65535))
        size = 12 * count + len(comment)
        one = entry(rng, order, size)
        entries = one * count if count > 3 else b"".join(entry(rng, order, size) for _ in range(count))
        body = struct.pack(f"{order}H", count) + entries + struct.pack(f"{order}I", rng.choice((0, 8))) + comment
    whole = mark + struct.pack(f"{order}HI", 42, rng.choice((8, 8, 8, 0, 1 << 31))) + body
    return whole[: rng.randrange(len(whole))] if rng.random() < 0.2 else whole


def xmp(rng: random.Random) -> bytes:
    """A packet of ours, of texts between its marks, or anything."""
    kind = rng.randrange(4)
    if kind == 0:
        return metadata_text.xmp_packet(metadata(rng))
    if kind == 1:
        return f"<sdjax:metadata>{metadata(rng)}</sdjax:metadata>".encode("utf-8", "surrogatepass")
    if kind == 2:
        return rng.choice((b"<sdjax:metadata>", b"</sdjax:metadata>", b"tiff:Orientation")) * rng.choice((2, 80_000))
    return text(rng).encode("utf-8", "surrogatepass")


# --- Files ---


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def text_chunk(rng: random.Random) -> bytes:
    """A text, plain or compressed, of a sound form or not."""
    keyword = rng.choice((b"parameters", b"sdjax", b"XML:com.adobe.xmp", b"Raw profile type exif", b"", b"k" * 200))
    body = rng.choice((metadata(rng), text(rng))).encode("utf-8", "surrogatepass")
    bomb = bytes(rng.choice((10, 1 << 20, 1 << 25)))
    kind = rng.randrange(6)
    if kind == 0:
        return chunk(b"tEXt", keyword + b"\0" + body)
    if kind == 1:
        return chunk(
            b"zTXt", keyword + b"\0" + rng.choice((b"\0", b"\1", b"")) + zlib.compress(rng.choice((body, bomb)))
        )
    if kind == 2:
        return chunk(b"iTXt", keyword + b"\0\0\0\0\0" + body)
    if kind == 3:
        return chunk(b"iTXt", keyword + b"\0\1\0en\0x\0" + zlib.compress(rng.choice((body, bomb))))
    if kind == 4:
        return chunk(b"eXIf", exif(rng))
    return chunk(
        rng.choice((b"tEXt", b"iTXt", b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"fdAT")), rng.randbytes(20)
    )


def png(rng: random.Random) -> bytes:
    """A small image with chunks before or behind its pixels."""
    file = io.BytesIO()
    Image.fromarray(_PIXELS).save(file, "PNG")
    whole = file.getvalue()
    one = text_chunk(rng)
    more = one * rng.choice((1, 1, 3, max(1, _MOST // len(one))))
    more += b"".join(text_chunk(rng) for _ in range(rng.randrange(3)))
    place = rng.choice((33, len(whole) - 12))
    return whole[:place] + more + whole[place:]


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG, cut to what it can hold."""
    return struct.pack(">HH", marker, min(len(body), 65533) + 2) + body[:65533]


def jpeg_segments(rng: random.Random) -> bytes:
    """Segments of one kind, few or many."""
    kind = rng.randrange(6)
    if kind == 0:
        return segment(0xFFE1, b"Exif\0\0" + exif(rng))
    if kind == 1:
        return segment(0xFFE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(rng))
    if kind == 2:
        return segment(0xFFE1, b"Exif\0\0" + rng.randbytes(60)) * rng.choice((3, 60, 20_000))
    if kind == 3:
        return segment(0xFFE2, b"MPF\0" + exif(rng))
    if kind == 4:
        return segment(0xFFED, b"Photoshop 3.0\0" + b"8BIM" * rng.choice((1, 9000)) + rng.randbytes(30))
    return segment(rng.choice((0xFFE2, 0xFFEE, 0xFFFE, 0xFFE0, 0xFFDB)), rng.randbytes(rng.choice((0, 3, 40)))) * (
        rng.choice((1, 30_000))
    )


def jpeg(rng: random.Random) -> bytes:
    """A small image with segments before its own."""
    file = io.BytesIO()
    Image.fromarray(_PIXELS).save(file, "JPEG")
    whole = file.getvalue()
    filling = rng.choice((b"", b"", b"\0" * 1_000_000, b"\xff" * 1_000_000, b"\xff\0" * 100_000))
    return whole[:2] + filling + b"".join(jpeg_segments(rng) for _ in range(rng.randint(1, 3))) + whole[2:]


def webp(rng: random.Random) -> bytes:
    """A small image with EXIF data and XMP of any size."""
    file = io.BytesIO()
    with_exif = rng.choice((b"", b"Exif\0\0")) + exif(rng)
    Image.fromarray(_PIXELS).save(file, "WEBP", lossless=True, exif=with_exif, xmp=xmp(rng))
    return file.getvalue()


def tiff(rng: random.Random) -> bytes:
    """A directory of entries alone, which the reader of input images may see."""
    return exif(rng) + rng.randbytes(100)


def sound(rng: random.Random) -> bytes:
    """An image without faults."""
    file = io.BytesIO()
    Image.fromarray(_PIXELS).save(file, rng.choice(("PNG", "JPEG", "WEBP")))
    return file.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut off, or with bytes changed."""
    kind = rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(min(len(data), 2000))] = rng.randrange(256)
        return bytes(changed)
    return data


_FILES: tuple[Callable[[random.Random], bytes], ...] = (png, jpeg, webp, tiff, sound)


def check_message(error: ImageError) -> None:
    """An error names the file and is short."""
    assert "x.png: " in str(error) and len(str(error)) < _MOST_LETTERS, str(error)[:2000]


def refused_by(read: Callable[[bytes, str], Any], data: bytes) -> bool:
    """Whether a reader refuses a file, clearly."""
    try:
        read(data, "x.png")
    except ImageError as error:
        check_message(error)
        return True
    return False


def warm(folder: Path) -> None:
    """Each kind of file once."""
    for number in range(20):
        inner = folder / str(number)
        inner.mkdir()
        case(random.Random(number), inner)


def case(rng: random.Random, folder: Path) -> bool:
    """A file of any kind, sound or damaged."""
    data = damaged(rng.choice(_FILES)(rng), rng)
    readers = (describe_image, read_metadata, read_parameters, decode, read_image, read_grey)
    refusals = [refused_by(read, data) for read in readers]
    assert not (refusals[0] and not refusals[3]), "what can be decoded is described"
    path = folder / "x.png"
    path.write_bytes(data)
    assert refused_by(lambda *_: list(describe(str(path))), data) == refusals[0], "a whole image is always told of"
    return refusals[0] or refusals[4]
