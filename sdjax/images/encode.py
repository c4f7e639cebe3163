"""Pixels and metadata <-> the bytes of a picture file.

The same pixels and metadata give the same bytes. Every format carries the metadata (see `metadata.py`), the generation
parameters as a text for other tools, and the label that the picture was made by a model.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from sdjax.images import metadata as words
from sdjax.images import segments
from sdjax.images.exif import read_exif, user_comment_block

# Nothing larger is decoded: a job's largest picture (8192 x 8192), below Pillow's own limit of 89.5 million.
MAX_PIXELS = 8192 * 8192
# No picture that is decoded takes more.
MAX_BYTES = 1 << 28
# Letters of another library's error that are shown.
_SHOWN = 200

# The whole last chunk of a PNG, less its length: Pillow does not miss the end of it.
_PNG_END = b"IEND\xaeB`\x82"
# Level 6 takes 6 times as long as 1 and saves 18 %; the encoder has to keep up with the device.
_PNG_LEVEL = 1
# Lossless: 10 ms for 512 x 512; method 4 takes 100 ms and saves 17 %.
_WEBP_LOSSLESS: dict[str, Any] = {"lossless": True, "method": 0, "quality": 50}
_JPEG_444: dict[str, Any] = {"quality": 95, "subsampling": 0}


class PictureError(ValueError):
    """A file is not a picture, is damaged, or does not hold what is asked of it."""


class EncodeError(ValueError):
    """Pixels or metadata do not fit into the format."""


class Format(NamedTuple):
    """A kind of picture file.

    extension: of the file's name, without the dot.
    lossless: whether the pixels come back exactly.
    write: picture, metadata and generation parameters to the file's bytes.
    read_json: the complete metadata as JSON, None if there is none.
    read_parameters: the text in A1111's words, None if there is none; a `PictureError` of it names no file.
    """

    extension: str
    lossless: bool
    write: Callable[[Image.Image, Mapping[str, Any], str], bytes]
    read_json: Callable[[Image.Image], str | None]
    read_parameters: Callable[[Image.Image], str | None]


# --- PNG: text chunks ---


def _write_png(picture: Image.Image, metadata: Mapping[str, Any], parameters: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    # tEXt if the text is Latin-1, else iTXt: Pillow decides it as A1111, which leaves it to Pillow.
    chunks.add_text("parameters", parameters)
    chunks.add_text("sdjax", words.to_json(metadata))
    chunks.add_itxt("XML:com.adobe.xmp", words.xmp_packet().decode())
    return _saved(picture, "PNG", pnginfo=chunks, compress_level=_PNG_LEVEL)


def _text_chunk(keyword: str) -> Callable[[Image.Image], str | None]:
    def read(picture: Image.Image) -> str | None:
        text = picture.info.get(keyword)
        return str(text) if isinstance(text, str) else None

    return read


# --- WebP and JPEG: EXIF and XMP ---


def _with_exif(kind: str, **options: Any) -> Callable[[Image.Image, Mapping[str, Any], str], bytes]:
    def write(picture: Image.Image, metadata: Mapping[str, Any], parameters: str) -> bytes:
        packet = words.xmp_packet(words.to_json(metadata))
        exif = user_comment_block(words.user_comment(parameters))
        return _saved(picture, kind, exif=exif, xmp=packet, **options)

    return write


def _json_of_xmp(picture: Image.Image) -> str | None:
    packet = picture.info.get("xmp")
    return words.json_in_xmp(packet) if isinstance(packet, bytes) else None


def _comment_of_exif(picture: Image.Image) -> str | None:
    try:
        value = read_exif(picture.info.get("exif", b"")).comment
    except ValueError as error:
        raise PictureError(f"its EXIF data are damaged ({error})") from error
    return None if value is None else words.text_of_user_comment(value)


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    try:
        picture.save(file, format=kind, **options)
    except (OSError, ValueError) as error:
        raise EncodeError(
            f"{picture.width}x{picture.height} pixels with metadata can't be written as {kind}: {error}. "
            "JPEG holds about 32,000 letters of metadata; png and webp hold more."
        ) from error
    return file.getvalue()


FORMATS: dict[str, Format] = {
    "png": Format("png", True, _write_png, _text_chunk("sdjax"), _text_chunk("parameters")),
    "webp": Format("webp", True, _with_exif("WEBP", **_WEBP_LOSSLESS), _json_of_xmp, _comment_of_exif),
    "jpeg": Format("jpg", False, _with_exif("JPEG", **_JPEG_444), _json_of_xmp, _comment_of_exif),
}


def encode(pixels: UInt8[np.ndarray, "h w 3"], metadata: Mapping[str, Any], parameters: str, format_name: str) -> bytes:
    """The bytes of a picture file.

    Args:
      pixels: sRGB.
      metadata: flat, of JSON values.
      parameters: the same for people and other tools to read (`a1111_text`).
      format_name: a key of `FORMATS`.

    Raises:
      EncodeError: for an unknown format, or what the format can't hold (64 kB of metadata in JPEG, 16 million letters
        in any).
    """
    if format_name not in FORMATS:
        raise EncodeError(f"format {format_name!r}: expected one of {', '.join(FORMATS)}")
    try:
        return FORMATS[format_name].write(Image.fromarray(np.ascontiguousarray(pixels)), metadata, parameters)
    except EncodeError:
        raise
    except ValueError as error:
        raise EncodeError(f"the metadata can't be written: {error}") from error


def decode(data: bytes | Path, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a picture file.

    Args:
      data: the file's bytes, or its path.
      name: names the file in errors.

    Raises:
      PictureError: if it is no whole picture of a known format, of at most `MAX_PIXELS` and `MAX_BYTES`, in 8-bit RGB.
    """
    with _opened(data, name) as picture:
        if picture.mode != "RGB":
            raise PictureError(f"{name}: a picture of mode {picture.mode}; expected 8-bit RGB. Convert it.")
        return np.array(picture)


def describe_picture(data: bytes | Path, name: str) -> str:
    """Width, height, mode and format of a picture; arguments and errors as in `decode`, but of any mode."""
    with _opened(data, name) as picture:
        return f"{picture.width}x{picture.height} {picture.mode} {picture.format}"


def read_metadata(data: bytes | Path, name: str) -> dict[str, Any]:
    """The metadata which `encode` put into a picture; arguments and errors as in `decode`.

    Raises:
      PictureError: also if the picture holds no metadata of sdjax.
    """
    with _opened(data, name) as picture:
        text = _format_of(picture).read_json(picture)
    if text is None:
        raise PictureError(f"{name}: no metadata of sdjax in it: made by something else, or stripped")
    try:
        return words.from_json(text)
    except ValueError as error:
        raise PictureError(f"{name}: its metadata of sdjax can't be read: {error}") from error


def read_parameters(data: bytes | Path, name: str) -> str | None:
    """The generation parameters in A1111's words, by whatever tool; None if there are none.

    Arguments and errors as in `decode`.
    """
    with _opened(data, name) as picture:
        try:
            text = _format_of(picture).read_parameters(picture)
        except PictureError as error:
            raise PictureError(f"{name}: {error}") from error
    if text is not None and len(text) > words.MAX_TEXT:
        raise PictureError(f"{name}: its generation parameters have {len(text)} letters, more than {words.MAX_TEXT}")
    return text


def _format_of(picture: Image.Image) -> Format:
    # Phones' JPEGs with several pictures inside are MPO to Pillow.
    return FORMATS.get((picture.format or "").lower(), FORMATS["jpeg"])


@contextlib.contextmanager
def _opened(data: bytes | Path, name: str) -> Iterator[Image.Image]:
    """A picture with its pixels loaded, and with every error about it made clear."""
    try:
        content = data if isinstance(data, bytes) else _content(data, name)
        with _identified(content) as picture:
            _check_size(picture, name)
            # The checksums of a PNG's chunks, which loading passes over; other formats have none.
            picture.verify()
            if picture.format == "PNG" and _PNG_END not in content:
                raise PictureError(f"{name}: a truncated picture: it ends within its last chunk")
        with _identified(content) as picture:
            picture.load()
            yield picture
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{name}: more than {MAX_PIXELS} pixels; not decoded: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise PictureError(f"{name}: not a picture of {', '.join(FORMATS)}") from error
    except FileNotFoundError as error:
        raise PictureError(f"{name}: there is no such file") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more
        raise PictureError(f"{name}: a damaged or truncated picture: {str(error)[:_SHOWN]}") from error


def _content(path: Path, name: str) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise PictureError(f"{name} has more than {MAX_BYTES} bytes, which no picture takes")
    return path.read_bytes()


def _identified(content: bytes) -> Image.Image:
    """A picture of which the beginning is read, with its EXIF data as they stand."""
    exif = b""
    if content.startswith(segments.PNG):
        segments.check_chunks(content)
    elif content.startswith(segments.JPEG):
        content, exif = segments.parted(content)
    picture = Image.open(io.BytesIO(content), formats=[known.upper() for known in FORMATS])
    if exif:
        picture.info["exif"] = exif
    return picture


def _check_size(picture: Image.Image, name: str) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise PictureError(f"{name}: {picture.width}x{picture.height} pixels, more than {MAX_PIXELS}; make it smaller")
