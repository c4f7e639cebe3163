"""Opens image files: their bytes are checked, identified and decoded, or an error says what is wrong with them.

What a file asks for is checked before it is given: the size before anything of that size is allocated, the extent of a
TIFF's tiles and of a GIF's frame, the chunks of a PNG, the segments of a JPEG, what tags point to. A file that ends too
early is an error also where Pillow fills what is missing with black or grey.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, TiffImagePlugin

from sdjax.images import containers

# Nothing larger is decoded: a job's largest image (8192 x 8192), below Pillow's own limit of 89.5 million.
MAX_PIXELS = 8192 * 8192
# No image that is decoded takes more.
MAX_BYTES = 1 << 28
# Modes of whole and of floating-point numbers that Pillow would cut to 8 bits.
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")
# Characters of another library's error that are quoted.
_MOST_QUOTED = 200

# What is often named .png by mistake, by how it begins.
_NOT_IMAGES = {
    b"%PDF": "a PDF",
    b"<svg": "an SVG drawing",
    b"<?xml": "XML, perhaps an SVG drawing",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS, not the file it stands for",
}


class ImageError(ValueError):
    """A file is not an image, is damaged, or does not hold what is asked of it."""


class DecodedFile(NamedTuple):
    """The first frame of an image file.

    image: of any mode, its pixels in memory. `info` has "exif", "xmp", "icc_profile" and "transparency" where the file
      has them, and a PNG's texts where they are asked for.
    frames: how many there are; 0 if there are several that were not counted.
    sixteen_bits: whether its colours had 16 bits, of which Pillow keeps the upper 8.
    turned: the EXIF orientation by which Pillow has turned it already (TIFF alone); 1 if it has not.
    """

    image: Image.Image
    frames: int
    sixteen_bits: bool
    turned: int


def decode_file(data: bytes | Path, name: str, formats: Sequence[str], *, texts: bool = False) -> DecodedFile:
    """Decodes the first frame of an image file.

    Args:
      data: the file's bytes, or its path. Few bytes may take 4 to 20 times `MAX_PIXELS` bytes of memory meanwhile.
      name: names the file in errors.
      formats: those that are tried, by Pillow's names.
      texts: whether the texts of a PNG are wanted, of which a few compressed bytes can become 64 MB.

    Raises:
      ImageError: if it is no whole image of these formats, of at most `MAX_PIXELS` and `MAX_BYTES`.
    """
    with opened_image(data, name, formats, texts=texts) as (image, plain):
        sixteen_bits = image.mode not in DEEP_MODES and any(";16" in str(tile.args) for tile in image.tile)
        turned, frames = 1, plain.frames
        tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow turns it while it loads it, and forgets.
            turned = image.tag_v2.get(ExifTags.Base.Orientation, 1)
        if getattr(image, "is_animated", False):
            # To count a TIFF's pages each of them has to be parsed.
            frames = 0 if tiff else getattr(image, "n_frames", 1)
        image.load()
        if isinstance(image, JpegImagePlugin.JpegImageFile) and containers.is_filled(image, plain.data):
            raise ImageError(f"{name}: a truncated image: its pixels end before the file does")
        return DecodedFile(image, frames, sixteen_bits, turned)


@contextlib.contextmanager
def opened_image(
    data: bytes | Path, name: str, formats: Sequence[str], *, texts: bool = False, most_pixels: int = MAX_PIXELS
) -> Iterator[tuple[ImageFile.ImageFile, containers.Plain]]:
    """A checked image file of which Pillow has read the beginning, and the bytes that Pillow was given.

    Arguments are those of `decode_file`; every error about the image within the context becomes an `ImageError`.
    """
    content = b""
    try:
        content = data if isinstance(data, bytes) else _read(data, name)
        plain = containers.checked(content, formats, texts, most_pixels)
        image = Image.open(io.BytesIO(plain.data), formats=tuple(formats))
        containers.check_size(image.width, image.height, most_pixels)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            containers.check_tiles(image)
        if plain.exif:
            image.info["exif"] = plain.exif
        yield image, plain
    except ImageError:
        raise
    except containers.ContainerError as error:
        raise ImageError(f"{name}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: more than {most_pixels} pixels; not decoded: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_what_it_is(content)}; expected one of {', '.join(formats).lower()}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such file") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more
        raise ImageError(f"{name}: a damaged or truncated image: {str(error)[:_MOST_QUOTED]}") from error


def _read(path: Path, name: str) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise ImageError(f"{name} has more than {MAX_BYTES} bytes, which no image takes")
    return path.read_bytes()


def _what_it_is(data: bytes) -> str:
    """Of what Pillow does not know."""
    if not data:
        return "an empty file"
    begins = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = (what for beginning, what in _NOT_IMAGES.items() if begins.startswith(beginning.lower()))
    return next(found, "no whole image")
