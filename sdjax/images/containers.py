"""What Pillow does not check of PNG, GIF, TIFF and JPEG files, found out from their bytes."""

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageChops, JpegImagePlugin, TiffImagePlugin

from sdjax.images import segments
from sdjax.images.exif import directory_extent


class ContainerError(ValueError):
    """A file is damaged or asks for too much; the message does not name it."""


class Plain(NamedTuple):
    """A file as Pillow is given it.

    data: its bytes without what is not needed.
    exif: EXIF data that are no longer in them.
    frames: of a PNG; of other files 1, as Pillow counts them.
    """

    data: bytes
    exif: bytes = b""
    frames: int = 1


def checked(data: bytes, formats: Sequence[str], texts: bool, most_pixels: int) -> Plain:
    """Checks a file by its format, and leaves out what is not needed of it.

    Args:
      data: the file's bytes.
      formats: those that will be tried, by Pillow's names.
      texts: whether the texts of a PNG are needed.
      most_pixels: of the first frame.

    Raises:
      ContainerError: if it is damaged, or larger.
    """
    if data.startswith(segments.PNG):
        return _plain_png(data, texts, most_pixels)
    if data.startswith(segments.JPEG):
        return Plain(*segments.split_jpeg(data))
    if "GIF" in formats and data.startswith(b"GIF8"):
        check_size(*_gif_size(data), most_pixels)
    if "TIFF" in formats and data[:4] in _TIFF_STARTS:
        _check_tags(data)
    return Plain(data)


def check_size(width: int, height: int, most_pixels: int) -> None:
    """Raises `ContainerError` if an image is empty or too large."""
    if width * height > most_pixels:
        raise ContainerError(f"{width}x{height} pixels, more than {most_pixels}; make it smaller")
    if min(width, height) < 1:
        raise ContainerError(f"{width}x{height} pixels; expected at least one")


# --- PNG ---

# Without the further frames of an APNG, and whatever says nothing about the pixels.
_KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row and steps of an interlaced PNG's passes (PNG specification, section 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 16


def _plain_png(data: bytes, texts: bool, most_pixels: int) -> Plain:
    """A PNG with only the chunks that are needed, after it was found to be whole."""
    chunks = _png_chunks(data)
    kind, header = chunks[0] if chunks else (b"", memoryview(b""))
    if kind != b"IHDR" or len(header) != 13:
        raise ContainerError("a damaged image: a PNG without its header")
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    check_size(width, height, most_pixels)
    needed = 0
    for column, row, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - column) // across), -(-(height - row) // down)
        if min(columns, rows) > 0:
            needed += rows * (1 + -(-columns * bits * _PNG_CHANNELS.get(colour, 1) // 8))
    if not _inflates_to(needed, (body for kind, body in chunks if kind == b"IDAT")):
        raise ContainerError(f"a truncated image: it has fewer pixels than {width}x{height}")
    frames = next((struct.unpack(">I", body[:4])[0] for kind, body in chunks if kind == b"acTL"), 1)
    kinds = (*_KEPT_CHUNKS, *_TEXT_CHUNKS) if texts else _KEPT_CHUNKS
    kept = [_chunk(kind, body) for kind, body in chunks if kind in kinds]
    return Plain(b"".join([segments.PNG, *kept]), frames=frames)


def _chunk(kind: bytes, body: memoryview) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _png_chunks(data: bytes) -> list[tuple[bytes, memoryview]]:
    """Kind and body of each chunk up to IEND, after the checksums."""
    try:
        segments.check_chunks(data)
    except ValueError as error:
        raise ContainerError(f"a damaged image: {error}") from error
    view, place = memoryview(data), len(segments.PNG)
    chunks: list[tuple[bytes, memoryview]] = []
    while not chunks or chunks[-1][0] != b"IEND":
        if place + 12 > len(data):
            raise ContainerError("a truncated image: it ends without its last chunk")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise ContainerError(f"a truncated image: it ends within a chunk {kind!r}")
        body = view[place + 8 : end - 4]
        if zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ContainerError(f"a damaged image: the checksum of a chunk {kind!r} does not match")
        chunks.append((kind, body))
        place = end
    return chunks


def _inflates_to(needed: int, bodies: Iterable[memoryview]) -> bool:
    """Whether a zlib stream in pieces holds so many bytes, of which few are in memory at a time."""
    inflate = zlib.decompressobj()
    for body in bodies:
        rest: memoryview | bytes = body
        while len(rest) and needed > 0:
            needed -= len(inflate.decompress(rest, _PIECE))
            rest = inflate.unconsumed_tail
    return needed - len(inflate.flush(_PIECE)) <= 0 if needed > 0 else True


# --- GIF, TIFF and JPEG ---


def _gif_size(data: bytes) -> tuple[int, int]:
    """Width and height of screen and first frame, for which Pillow allocates when it opens the file."""
    screen_width, screen_height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << (flags % 8 + 1) if flags & 0x80 else 0)
    while data[place] == 0x21:  # an extension: its label, then blocks up to an empty one
        place += 2
        while data[place]:
            place += data[place] + 1
        place += 1
    if data[place] != 0x2C:
        raise ValueError("a GIF without a frame")
    left, top, width, height = struct.unpack_from("<HHHH", data, place + 1)
    return max(screen_width, left + width), max(screen_height, top + height)


# Order of bytes, and whether it is BigTIFF; two are wrong, and Pillow reads them.
_TIFF_STARTS = {
    b"II*\0": ("<", False), b"MM\0*": (">", False), b"II\0*": ("<", False), b"MM*\0": (">", False),
    b"II+\0": ("<", True), b"MM\0+": (">", True),
}  # fmt: skip
# Entries may share what they point to, such as one resolution for both directions.
_SHARED = 1 << 20
# The first directory of a TIFF, and those within it that Pillow reads too.
_MOST_DIRECTORIES = 7


def _check_tags(data: bytes) -> None:
    """Raises `ContainerError` if the entries of a TIFF, all of which Pillow copies, point to more than is in it."""
    order, big = _TIFF_STARTS[data[:4]]
    places = [struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]]
    for place in places:
        try:
            found = directory_extent(data, place, order, big)
        except ValueError:  # Pillow's error of the first says more, and the others are left aside
            continue
        if found.size > len(data) + _SHARED:
            raise ContainerError(f"a damaged image: its tags point to more than its {len(data)} bytes")
        places += found.further[: _MOST_DIRECTORIES - len(places)]


# Tiles of up to so many pixels are usual; larger ones only in images that are about as large.
_USUAL_TILE = 1024 * 1024


def check_tiles(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raises `ContainerError` if a TIFF has tiles that are much larger than itself."""
    width, height = image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0), image.tag_v2.get(TiffImagePlugin.TILELENGTH, 0)
    if width * height > max(_USUAL_TILE, 4 * image.width * image.height):
        raise ContainerError(f"{image.width}x{image.height} pixels in tiles of {width}x{height}; not decoded")


# Unlike the zeros with which the decoder goes on.
_ANY_BYTES = b"\x55" * 64


def is_filled(image: JpegImagePlugin.JpegImageFile, data: bytes) -> bool:
    """Whether a JPEG's pixels end too early, where the decoder goes on in grey and says nothing.

    After the last pixel of a whole image any bytes may follow: they change nothing. One of several passes that ends
    between two of them can't be told from a whole one.
    """
    end = data.rfind(b"\xff\xd9")
    if end < 0 or image.format != "JPEG":
        return False
    longer = Image.open(io.BytesIO(data[:end] + _ANY_BYTES + data[end:]), formats=["JPEG"])
    return ImageChops.difference(longer, image).getbbox(alpha_only=False) is not None
