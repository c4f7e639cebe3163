"""Image files of users -> pixels that can be relied on: sRGB images, and the values of masks and depth maps."""

import io
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image, ImageCms, TiffImagePlugin

from sdjax.images.decode import DEEP_MODES, ImageError, decode_file
from sdjax.images.exif import read_exif

# Few, for each is a parser in C that strangers can try; a phone's JPEG with several images inside is JPEG here.
READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

# What is laid behind transparent images, as by A1111 (its `img2img_background_color`).
_PAPER = (255, 255, 255)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = "turned by its EXIF orientation"


class DecodedImage(NamedTuple):
    """An image file that was read.

    pixels: sRGB; what is transparent is laid on white.
    notes: what was done to get plain pixels from it, such as "turned by its EXIF orientation".
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    notes: tuple[str, ...]


class Grey(NamedTuple):
    """A mask or a depth map that was read.

    values: from 0 to 1.
    notes: as of an image.
    """

    values: Float32[np.ndarray, "h w"]
    notes: tuple[str, ...]


def read_image(data: bytes, name: str) -> DecodedImage:
    """The pixels of an image file, as a viewer would show it on white paper.

    It is turned by its EXIF orientation; an ICC profile is followed, and CMYK without one is taken as Pillow does.
    16 bits become 8, rounded where they are grey, the upper 8 where they are colours. diffusers' `load_image` differs:
    it drops the opacity, which shows whatever colours were hidden, and leaves profiles aside.

    Args:
      data: the file's bytes. Few bytes may take 4 to 20 times `MAX_PIXELS` bytes of memory while they are read.
      name: names the file in errors.

    Raises:
      ImageError: if it is no whole image of a kind in `READABLE`, of at most `MAX_PIXELS`.
    """
    image, notes = _turned(data, name)
    opacity: Image.Image | None
    if image.mode in DEEP_MODES:
        grey = np.floor(_deep_grey(image, name) * 255 + 0.5).astype(np.uint8)
        colours = Image.fromarray(grey)
        clear = image.info.get("transparency")
        opaque = np.asarray(image) != clear
        opacity = None if clear is None else Image.fromarray(np.where(opaque, np.uint8(255), np.uint8(0)))
        notes.append("float to 8 bits" if image.mode == "F" else f"{_bits(image)} bits to 8")
    else:
        colours, opacity = _parted(image)
    colours = _in_srgb(colours, image.info.get("icc_profile"), notes)
    if opacity is not None and opacity.getextrema() == (255, 255):
        opacity = None
    if opacity is not None:
        paper = Image.new("RGB", colours.size, _PAPER)
        paper.paste(colours, mask=opacity)
        colours = paper
        notes.append("transparency laid on white")
    return DecodedImage(np.array(colours), tuple(notes))


def read_grey(data: bytes, name: str) -> Grey:
    """The numbers of a mask or a depth map, from 0 to 1, at the file's own depth.

    Colours count by their luma (ITU-R 601), as in diffusers' `convert("L")`, and transparency doesn't, save where the
    colours are the same everywhere: then the opacity is meant, as in masks that are painted on a clear layer (A1111).
    Profiles are left aside, for these are no colours. It is turned as in `read_image`.

    Arguments and errors as in `read_image`.

    Raises:
      ImageError: also for floating-point values which are not from 0 to 1.
    """
    image, notes = _turned(data, name)
    if image.mode in DEEP_MODES:
        return Grey(_deep_grey(image, name).astype(np.float32), tuple(notes))
    colours, opacity = _parted(image)
    grey = _in_srgb(colours, None, []) if colours.mode in ("CMYK", "LAB") else colours
    values = np.asarray(grey.convert("L"))
    # Opacity that is whole everywhere says nothing.
    if opacity is not None and values.min() == values.max() and opacity.getextrema() != (255, 255):
        values = np.asarray(opacity)
        notes.append("its opacity is taken, for it has one colour")
    return Grey(values.astype(np.float32) / np.float32(255), tuple(notes))


# --- From a file to one frame in memory ---


def _turned(data: bytes, name: str) -> tuple[Image.Image, list[str]]:
    """The first frame, turned by its EXIF orientation, of any mode; and what was done."""
    image, frames, sixteen_bits, turned = decode_file(data, name, READABLE)
    notes: list[str] = []
    if sixteen_bits and image.mode == "RGB" and "transparency" in image.info:
        # Pillow compares all 16 bits of the clear colour with 8 of each pixel.
        raise ImageError(f"{name}: 16-bit colours of which one is transparent; use an alpha channel")
    if sixteen_bits:
        notes.append("16 bits to 8")
    if frames != 1:
        notes.append(f"first of {frames or 'several'} frames")
    if image.format == "TIFF":
        return image, [*notes, _TURNED] if turned in _TURNS else notes
    orientation = _orientation(image, notes)
    if orientation not in _TURNS:
        return image, notes
    upright = image.transpose(_TURNS[orientation])
    upright.info = image.info
    return upright, [*notes, _TURNED]


# As tools write it that leave EXIF aside.
_TURNED_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """Of its EXIF data, or else of its XMP."""
    try:
        orientation = read_exif(image.info.get("exif", b"")).orientation
    except ValueError:  # the pixels are good without it
        notes.append("its EXIF data are damaged: left aside")
        return 1
    packet = image.info.get("xmp")
    if orientation is None and isinstance(packet, bytes) and (found := _TURNED_IN_XMP.search(packet)):
        return int(found[1])
    return 1 if orientation is None else orientation


# --- From one frame to colours, or to numbers ---


def _bits(image: Image.Image) -> int:
    tags = getattr(image, "tag_v2", {})
    return tags[TiffImagePlugin.BITSPERSAMPLE][0] if TiffImagePlugin.BITSPERSAMPLE in tags else 16


def _deep_grey(image: Image.Image, name: str) -> Float64[np.ndarray, "h w"]:
    """A mode of `DEEP_MODES`, from 0 to 1 by what the file can hold."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    signed = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 2
    if image.mode == "F":
        most = 1
    elif signed:
        most = 2 ** (_bits(image) - 1) - 1
    else:
        most = 2 ** _bits(image) - 1
        values = values.view(np.uint32) if image.mode == "I" else values
    least, largest = float(values.min()), float(values.max())
    if not (least >= 0 and largest <= most):  # also if one is not a number
        raise ImageError(f"{name}: values from {least:g} to {largest:g}; expected 0 to {most}")
    scaled = values.astype(np.float64) / most
    return 1 - scaled if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else scaled


def _parted(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours of a mode without transparency, and the opacity if there is any."""
    if not image.has_transparency_data:
        return image, None
    whole = image if image.mode == "LA" else image.convert("RGBA")
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
