"""Strangers' picture files -> pixels that can be relied on, or an error that says what is wrong with the file.

What a file asks for is checked before it is given: the size before anything of that size is allocated, the extent of a
TIFF's tiles and of a GIF's frame, the chunks of a PNG, the segments of a JPEG, what tags point to. Texts are left
aside, and of an animation only the first frame is decoded. A file that ends too early is an error also where Pillow
fills what is missing with black or grey.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import ExifTags, Image, ImageChops, ImageCms, JpegImagePlugin, TiffImagePlugin

from sdjax.images import segments
from sdjax.images.encode import MAX_PIXELS, PictureError
from sdjax.images.exif import asked, read_exif

# Few, for each is a parser in C that strangers can try; a phone's JPEG with several pictures inside is JPEG here.
READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

# What is often named .png by mistake, by how it begins.
_NOT_PICTURES = {
    b"%PDF": "a PDF",
    b"<svg": "an SVG drawing",
    b"<?xml": "XML, perhaps an SVG drawing",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS, not the file it stands for",
}

# Modes of whole and of floating-point numbers that Pillow would cut to 8 bits.
_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")
# What is laid behind transparent pictures, as by A1111 (its `img2img_background_color`).
_PAPER = (255, 255, 255)
# Letters of another library's error that are shown.
_SHOWN = 200

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Picture(NamedTuple):
    """A picture file that was read.

    pixels: sRGB; what is transparent is laid on white.
    notes: what was done to get plain pixels from it, such as "turned by its EXIF orientation".
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    notes: tuple[str, ...]


class Grey(NamedTuple):
    """A mask or a depth map that was read.

    values: from 0 to 1.
    notes: as of a picture.
    """

    values: Float32[np.ndarray, "h w"]
    notes: tuple[str, ...]


def read_picture(data: bytes, name: str) -> Picture:
    """The pixels of a picture file, as a viewer would show it on white paper.

    It is turned by its EXIF orientation; an ICC profile is followed, and CMYK without one is taken as Pillow does.
    16 bits become 8, rounded where they are grey, the upper 8 where they are colours. diffusers' `load_image` differs:
    it drops the opacity, which shows whatever colours were hidden, and leaves profiles aside.

    Args:
      data: the file's bytes. Few bytes may take 4 to 20 times `MAX_PIXELS` bytes of memory while they are read.
      name: names the file in errors.

    Raises:
      PictureError: if it is no whole picture of a kind in `READABLE`, of at most `MAX_PIXELS`.
    """
    picture, notes = _loaded(data, name)
    opacity: Image.Image | None
    if picture.mode in _DEEP:
        grey = np.floor(_deep_grey(picture, name) * 255 + 0.5).astype(np.uint8)
        colours = Image.fromarray(grey)
        clear = picture.info.get("transparency")
        opaque = np.asarray(picture) != clear
        opacity = None if clear is None else Image.fromarray(np.where(opaque, np.uint8(255), np.uint8(0)))
        notes.append("float to 8 bits" if picture.mode == "F" else f"{_bits(picture)} bits to 8")
    else:
        colours, opacity = _parted(picture)
    colours = _in_srgb(colours, picture.info.get("icc_profile"), notes)
    if opacity is not None and opacity.getextrema() == (255, 255):
        opacity = None
    if opacity is not None:
        paper = Image.new("RGB", colours.size, _PAPER)
        paper.paste(colours, mask=opacity)
        colours = paper
        notes.append("transparency laid on white")
    return Picture(np.array(colours), tuple(notes))


def read_grey(data: bytes, name: str) -> Grey:
    """The numbers of a mask or a depth map, from 0 to 1, at the file's own depth.

    Colours count by their luma (ITU-R 601), as in diffusers' `convert("L")`, and transparency doesn't, save where the
    colours are the same everywhere: then the opacity is meant, as in masks that are painted on a clear layer (A1111).
    Profiles are left aside, for these are no colours. It is turned as in `read_picture`.

    Arguments and errors as in `read_picture`.

    Raises:
      PictureError: also for floating-point values which are not from 0 to 1.
    """
    picture, notes = _loaded(data, name)
    if picture.mode in _DEEP:
        return Grey(_deep_grey(picture, name).astype(np.float32), tuple(notes))
    colours, opacity = _parted(picture)
    grey = _in_srgb(colours, None, []) if colours.mode in ("CMYK", "LAB") else colours
    values = np.asarray(grey.convert("L"))
    # Opacity that is whole everywhere says nothing.
    if opacity is not None and values.min() == values.max() and opacity.getextrema() != (255, 255):
        values = np.asarray(opacity)
        notes.append("its opacity is taken, for it has one colour")
    return Grey(values.astype(np.float32) / np.float32(255), tuple(notes))


# --- From a file to one frame in memory ---


def _loaded(data: bytes, name: str) -> tuple[Image.Image, list[str]]:
    """The first frame, decoded and turned, of any mode; and what was done."""
    try:
        return _decoded(data, name)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{name}: more than {MAX_PIXELS} pixels; not decoded: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise PictureError(f"{name}: {_what_it_is(data)}") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more
        raise PictureError(f"{name}: a damaged or truncated picture: {str(error)[:_SHOWN]}") from error


def _what_it_is(data: bytes) -> str:
    """Of what Pillow does not know."""
    if not data:
        return "an empty file; expected a picture"
    begins = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = (what for beginning, what in _NOT_PICTURES.items() if begins.startswith(beginning.lower()))
    return f"{next(found, 'no whole picture')}; expected one of {', '.join(READABLE).lower()}"


def _decoded(data: bytes, name: str) -> tuple[Image.Image, list[str]]:
    notes: list[str] = []
    frames = 1
    plain, exif = data, b""
    if data.startswith(segments.PNG):
        plain, frames = _plain_png(data, name)
    elif data.startswith(segments.JPEG):
        plain, exif = segments.parted(data)
    elif data.startswith(b"GIF8"):
        _check_size(*_gif_size(data), name)
    elif data[:4] in _TIFF_STARTS:
        _check_tags(data, name)
    picture = Image.open(io.BytesIO(plain), formats=READABLE)
    _check_size(picture.width, picture.height, name)
    sixteen = picture.mode not in _DEEP and any(";16" in str(tile.args) for tile in picture.tile)
    orientation = 1
    tiff = isinstance(picture, TiffImagePlugin.TiffImageFile)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        _check_tiles(picture, name)
        # Pillow turns it while it loads it, and forgets.
        orientation = picture.tag_v2.get(ExifTags.Base.Orientation, 1)
    if getattr(picture, "is_animated", False):
        # To count a TIFF's pages each of them has to be parsed.
        frames = 0 if tiff else getattr(picture, "n_frames", 1)
    picture.load()
    if isinstance(picture, JpegImagePlugin.JpegImageFile) and _is_filled(picture, plain):
        raise PictureError(f"{name}: a truncated picture: its pixels end before the file does")
    if sixteen:
        notes.append("16 bits to 8")
    if frames != 1:
        notes.append(f"first of {frames or 'several'} frames")
    orientation = orientation if tiff else _orientation(picture, exif or picture.info.get("exif", b""), notes)
    if orientation in _TURNS:
        notes.append("turned by its EXIF orientation")
        if not tiff:
            turned = picture.transpose(_TURNS[orientation])
            turned.info = picture.info
            return turned, notes
    return picture, notes


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise PictureError(f"{name}: {width}x{height} pixels, more than {MAX_PIXELS}; make it smaller")
    if min(width, height) < 1:
        raise PictureError(f"{name}: {width}x{height} pixels; expected at least one")


# As tools write it that leave EXIF aside.
_TURNED_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def _orientation(picture: Image.Image, exif: bytes, notes: list[str]) -> int:
    """Of its EXIF data, or else of its XMP."""
    try:
        orientation = read_exif(exif).orientation
    except ValueError:  # the pixels are good without it
        notes.append("its EXIF data are damaged: left aside")
        return 1
    packet = picture.info.get("xmp")
    if orientation is None and isinstance(packet, bytes) and (found := _TURNED_IN_XMP.search(packet)):
        return int(found[1])
    return 1 if orientation is None else orientation


# --- What Pillow does not check: PNG ---

# Without texts, of which a few compressed bytes can become 64 MB, and without the further frames of an APNG.
_KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND")
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row and steps of an interlaced PNG's passes (PNG specification, section 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 16


def _plain_png(data: bytes, name: str) -> tuple[bytes, int]:
    """The file with only the chunks that are needed, and its number of frames, after it was found to be whole."""
    chunks = _png_chunks(data, name)
    kind, header = chunks[0] if chunks else (b"", memoryview(b""))
    if kind != b"IHDR" or len(header) != 13:
        raise PictureError(f"{name}: a damaged picture: a PNG without its header")
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    _check_size(width, height, name)
    needed = 0
    for column, row, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - column) // across), -(-(height - row) // down)
        if min(columns, rows) > 0:
            needed += rows * (1 + -(-columns * bits * _PNG_CHANNELS.get(colour, 1) // 8))
    if not _inflates_to(needed, (body for kind, body in chunks if kind == b"IDAT")):
        raise PictureError(f"{name}: a truncated picture: it has fewer pixels than {width}x{height}")
    if colour == 2 and bits == 16 and any(kind == b"tRNS" for kind, _ in chunks):
        # Pillow compares all 16 bits of the clear colour with 8 of each pixel.
        raise PictureError(f"{name}: 16-bit colours of which one is transparent; use an alpha channel")
    frames = next((struct.unpack(">I", body[:4])[0] for kind, body in chunks if kind == b"acTL"), 1)
    kept = [_chunk(kind, body) for kind, body in chunks if kind in _KEPT_CHUNKS]
    return b"".join([segments.PNG, *kept]), frames


def _chunk(kind: bytes, body: memoryview) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _png_chunks(data: bytes, name: str) -> list[tuple[bytes, memoryview]]:
    """Kind and body of each chunk up to IEND, after the checksums."""
    try:
        segments.check_chunks(data)
    except ValueError as error:
        raise PictureError(f"{name}: a damaged picture: {error}") from error
    view, place = memoryview(data), len(segments.PNG)
    chunks: list[tuple[bytes, memoryview]] = []
    while not chunks or chunks[-1][0] != b"IEND":
        if place + 12 > len(data):
            raise PictureError(f"{name}: a truncated picture: it ends without its last chunk")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise PictureError(f"{name}: a truncated picture: it ends within a chunk {kind!r}")
        body = view[place + 8 : end - 4]
        if zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", data, end - 4)[0]:
            raise PictureError(f"{name}: a damaged picture: the checksum of a chunk {kind!r} does not match")
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


def _check_tags(data: bytes, name: str) -> None:
    """Raises `PictureError` if the entries of a TIFF, all of which Pillow copies, point to more than is in it."""
    order, big = _TIFF_STARTS[data[:4]]
    places = [struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]]
    for place in places:
        try:
            found = asked(data, place, order, big)
        except ValueError:  # Pillow's error of the first says more, and the others are left aside
            continue
        if found.size > len(data) + _SHARED:
            raise PictureError(f"{name}: a damaged picture: its tags point to more than its {len(data)} bytes")
        places += found.further[: _MOST_DIRECTORIES - len(places)]


# Tiles of up to so many pixels are usual; larger ones only in pictures that are about as large.
_USUAL_TILE = 1024 * 1024


def _check_tiles(picture: TiffImagePlugin.TiffImageFile, name: str) -> None:
    width, height = picture.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0), picture.tag_v2.get(TiffImagePlugin.TILELENGTH, 0)
    if width * height > max(_USUAL_TILE, 4 * picture.width * picture.height):
        raise PictureError(f"{name}: {picture.width}x{picture.height} pixels in tiles of {width}x{height}; not decoded")


# Unlike the zeros with which the decoder goes on.
_ANY_BYTES = b"\x55" * 64


def _is_filled(picture: JpegImagePlugin.JpegImageFile, data: bytes) -> bool:
    """Whether a JPEG's pixels end too early, where the decoder goes on in grey and says nothing.

    After the last pixel of a whole picture any bytes may follow: they change nothing. One of several passes that ends
    between two of them can't be told from a whole one.
    """
    end = data.rfind(b"\xff\xd9")
    if end < 0 or picture.format != "JPEG":
        return False
    longer = Image.open(io.BytesIO(data[:end] + _ANY_BYTES + data[end:]), formats=["JPEG"])
    return ImageChops.difference(longer, picture).getbbox(alpha_only=False) is not None


# --- From one frame to colours, or to numbers ---


def _bits(picture: Image.Image) -> int:
    tags = getattr(picture, "tag_v2", {})
    return tags[TiffImagePlugin.BITSPERSAMPLE][0] if TiffImagePlugin.BITSPERSAMPLE in tags else 16


def _deep_grey(picture: Image.Image, name: str) -> Float64[np.ndarray, "h w"]:
    """A mode of `_DEEP`, from 0 to 1 by what the file can hold."""
    tags = getattr(picture, "tag_v2", {})
    values = np.asarray(picture)
    signed = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 2
    if picture.mode == "F":
        most = 1
    elif signed:
        most = 2 ** (_bits(picture) - 1) - 1
    else:
        most = 2 ** _bits(picture) - 1
        values = values.view(np.uint32) if picture.mode == "I" else values
    least, largest = float(values.min()), float(values.max())
    if not (least >= 0 and largest <= most):  # also if one is not a number
        raise PictureError(f"{name}: values from {least:g} to {largest:g}; expected 0 to {most}")
    scaled = values.astype(np.float64) / most
    return 1 - scaled if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else scaled


def _parted(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours of a mode without transparency, and the opacity if there is any."""
    if not picture.has_transparency_data:
        return picture, None
    whole = picture if picture.mode == "LA" else picture.convert("RGBA")
    *colours, opacity = whole.split()
    return (colours[0] if len(colours) == 1 else Image.merge("RGB", colours)), opacity


def _in_srgb(colours: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Colours of any mode without transparency as RGB, by their ICC profile if they have one that can be followed."""
    mode = colours.mode
    if mode not in ("1", "L", "P", "RGB", "RGBX"):
        notes.append(f"{mode} to RGB")
    if mode not in ("L", "RGB", "CMYK", "LAB"):
        colours = colours.convert("RGB")
    converted = None
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" in ImageCms.getProfileDescription(source).lower():
                return colours.convert("RGB")
            converted = _by_profile(colours, source)
            notes.append("its ICC profile to sRGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append("its ICC profile can't be followed: left aside")
    if converted is None:
        lab = mode == "LAB"
        converted = _by_profile(colours, ImageCms.createProfile("LAB")) if lab else colours.convert("RGB")
    return converted


def _by_profile(colours: Image.Image, source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    """As photographs are shown: relative colorimetric, with the blackest black of either matched."""
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(colours, source, target, intent, "RGB", flags=flags)
    assert converted is not None  # as it is not done in place
    return converted
