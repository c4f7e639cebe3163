"""Pixels and metadata <-> the bytes of an image file.

The same pixels and metadata give the same bytes. Every format carries the metadata (see `metadata.py`), the generation
parameters as a text for other tools, and the label that the image was made by a model.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from sdjax.images import metadata as metadata_text
from sdjax.images.decode import ImageError, decode_file
from sdjax.images.exif import read_exif, user_comment_block

# Level 6 takes 6 times as long as 1 and saves 18 %; the encoder has to keep up with the device.
_PNG_LEVEL = 1
# Lossless: 10 ms for 512 x 512; method 4 takes 100 ms and saves 17 %.
_WEBP_LOSSLESS: dict[str, Any] = {"lossless": True, "method": 0, "quality": 50}
_JPEG_444: dict[str, Any] = {"quality": 95, "subsampling": 0}


class EncodeError(ValueError):
    """Pixels or metadata do not fit into the format."""


class Format(NamedTuple):
    """A format of image files.

    extension: of the file's name, without the dot.
    lossless: whether the pixels come back exactly.
    write: image, metadata and generation parameters to the file's bytes.
    read_json: the complete metadata as JSON, None if there is none.
    read_parameters: the text in A1111's words, None if there is none; a `ImageError` of it names no file.
    """

    extension: str
    lossless: bool
    write: Callable[[Image.Image, Mapping[str, Any], str], bytes]
    read_json: Callable[[Image.Image], str | None]
    read_parameters: Callable[[Image.Image], str | None]


# --- PNG: text chunks ---


def _write_png(image: Image.Image, metadata: Mapping[str, Any], parameters: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    # tEXt if the text is Latin-1, else iTXt: Pillow decides it as A1111, which leaves it to Pillow.
    chunks.add_text("parameters", parameters)
    chunks.add_text("sdjax", metadata_text.to_json(metadata))
    chunks.add_itxt("XML:com.adobe.xmp", metadata_text.xmp_packet().decode())
    return _saved(image, "PNG", pnginfo=chunks, compress_level=_PNG_LEVEL)


def _text_chunk(keyword: str) -> Callable[[Image.Image], str | None]:
    def read(image: Image.Image) -> str | None:
        text = image.info.get(keyword)
        return str(text) if isinstance(text, str) else None

    return read


# --- WebP and JPEG: EXIF and XMP ---


def _with_exif(kind: str, **options: Any) -> Callable[[Image.Image, Mapping[str, Any], str], bytes]:
    def write(image: Image.Image, metadata: Mapping[str, Any], parameters: str) -> bytes:
        packet = metadata_text.xmp_packet(metadata_text.to_json(metadata))
        exif = user_comment_block(metadata_text.user_comment(parameters))
        return _saved(image, kind, exif=exif, xmp=packet, **options)

    return write


def _json_of_xmp(image: Image.Image) -> str | None:
    packet = image.info.get("xmp")
    return metadata_text.json_in_xmp(packet) if isinstance(packet, bytes) else None


def _comment_of_exif(image: Image.Image) -> str | None:
    try:
        value = read_exif(image.info.get("exif", b"")).comment
    except ValueError as error:
        raise ImageError(f"its EXIF data are damaged ({error})") from error
    return None if value is None else metadata_text.text_of_user_comment(value)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    try:
        image.save(file, format=kind, **options)
    except (OSError, ValueError) as error:
        raise EncodeError(
            f"{image.width}x{image.height} pixels with metadata can't be written as {kind}: {error}. "
            "JPEG holds about 32,000 letters of metadata; png and webp hold more."
        ) from error
    return file.getvalue()


FORMATS: dict[str, Format] = {
    "png": Format("png", True, _write_png, _text_chunk("sdjax"), _text_chunk("parameters")),
    "webp": Format("webp", True, _with_exif("WEBP", **_WEBP_LOSSLESS), _json_of_xmp, _comment_of_exif),
    "jpeg": Format("jpg", False, _with_exif("JPEG", **_JPEG_444), _json_of_xmp, _comment_of_exif),
}


_PILLOW_FORMATS = tuple(known.upper() for known in FORMATS)


def encode(pixels: UInt8[np.ndarray, "h w 3"], metadata: Mapping[str, Any], parameters: str, format_name: str) -> bytes:
    """Encodes an image file.

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
    """The pixels of an image file.

    Args:
      data: the file's bytes, or its path.
      name: names the file in errors.

    Raises:
      ImageError: if it is no whole image of a known format, of at most `MAX_PIXELS` and `MAX_BYTES`, in 8-bit RGB.
    """
    image = decode_file(data, name, _PILLOW_FORMATS).image
    if image.mode != "RGB":
        raise ImageError(f"{name}: an image of mode {image.mode}; expected 8-bit RGB. Convert it.")
    return np.array(image)


def describe_image(data: bytes | Path, name: str) -> str:
    """Width, height, mode and format of an image; arguments and errors as in `decode`, but of any mode."""
    image = decode_file(data, name, _PILLOW_FORMATS).image
    return f"{image.width}x{image.height} {image.mode} {image.format}"


def read_metadata(data: bytes | Path, name: str) -> dict[str, Any]:
    """The metadata which `encode` put into an image; arguments and errors as in `decode`.

    Raises:
      ImageError: also if the image holds no metadata of sdjax.
    """
    image = decode_file(data, name, _PILLOW_FORMATS, texts=True).image
    text = _format_of(image).read_json(image)
    if text is None:
        raise ImageError(f"{name}: no metadata of sdjax in it: made by something else, or stripped")
    try:
        return metadata_text.from_json(text)
    except ValueError as error:
        raise ImageError(f"{name}: its metadata of sdjax can't be read: {error}") from error


def read_parameters(data: bytes | Path, name: str) -> str | None:
    """The generation parameters in A1111's words, by whatever tool; None if there are none.

    Arguments and errors as in `decode`.
    """
    image = decode_file(data, name, _PILLOW_FORMATS, texts=True).image
    try:
        text = _format_of(image).read_parameters(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    if text is not None and len(text) > metadata_text.MAX_TEXT:
        raise ImageError(
            f"{name}: its generation parameters have {len(text)} letters, more than {metadata_text.MAX_TEXT}"
        )
    return text


def _format_of(image: Image.Image) -> Format:
    # Phones' JPEGs with several images inside are MPO to Pillow.
    return FORMATS.get((image.format or "").lower(), FORMATS["jpeg"])
