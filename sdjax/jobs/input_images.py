"""A job's input images: their files, opened and checked; fitted to the image's size; with the drawn image pasted in."""

import dataclasses
import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from sdjax.images import masks
from sdjax.images.cached import CachedImage, decoded
from sdjax.images.decode import MAX_BYTES, ImageError
from sdjax.images.fit import fitted, fitted_grey, fitted_mask, snapped
from sdjax.images.preprocessors import PREPROCESSORS, read_preprocessor
from sdjax.images.read import read_grey, read_image
from sdjax.jobs.canonical import DEPTH_PREPROCESSOR, split
from sdjax.jobs.fields import JobError
from sdjax.jobs.job import IMAGE_FIELDS, MAX_SIDE, Job

# A path -> the bytes of the file.
Read = Callable[[str], bytes]
# Pixels -> how near each is, at any size and on any scale; raises `JobError` if that can't be estimated.
Depth = Callable[[UInt8[np.ndarray, "h w 3"]], Float32[np.ndarray, "i j"]]

# Pixels along each side of a square, of which an image may have as many to give an image its size.
MAX_UNASKED = 2048
# No path has more letters; those of others that are quoted.
_MOST_LETTERS, _SHOWN = 4096, 40
# The beginnings of image files as base64: PNG, JPEG, WebP, GIF, TIFF.
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD", "SUkqA", "TU0AK")
# Without a dot, paths are shorter.
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{256,}={0,2}\s*")
_BASE64_SHORT = re.compile(r"[A-Za-z0-9+/_\s-]{24,}={0,2}\s*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


class InputFiles(NamedTuple):
    """The input images of a job as their files have them.

    image: of 8-bit sRGB.
    mask: from 0 to 1, in the size of the image.
    depth: from 0 to 1.
    controls: what ControlNets see, one for each of them, of 8-bit sRGB.
    digests: sha256 of each field's files, by the field.
    notes: what had to be done to read them.
    """

    image: CachedImage | None
    mask: CachedImage | None
    depth: CachedImage | None
    controls: tuple[CachedImage, ...]
    digests: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


class Region(NamedTuple):
    """A part of an image, from a row and column and before others."""

    top: int
    left: int
    bottom: int
    right: int


class InputImages(NamedTuple):
    """A job's input images at the size of the image.

    image: with which it begins.
    mask: 1 is repainted, 0 stays.
    latent_mask: likewise, of the latents.
    depth: of which depth maps are made, near is large.
    depth_from: the image of which the depth is to be estimated.
    controls: what ControlNets see, one for each of them.
    controls_by_depth: which of them are to become depth maps first.
    whole: the image into which the drawn one is pasted; None if it is not.
    whole_mask: of `whole`, or of its region.
    region: of `whole` that was drawn.
    """

    image: UInt8[np.ndarray, "h w 3"] | None = None
    mask: Float32[np.ndarray, "h w"] | None = None
    latent_mask: Float32[np.ndarray, "i j"] | None = None
    depth: Float32[np.ndarray, "k l"] | None = None
    depth_from: UInt8[np.ndarray, "h w 3"] | None = None
    controls: tuple[UInt8[np.ndarray, "h w 3"], ...] = ()
    controls_by_depth: tuple[bool, ...] = ()
    whole: UInt8[np.ndarray, "y x 3"] | None = None
    whole_mask: Float32[np.ndarray, "k2 l2"] | None = None
    region: Region | None = None


def check_path(path: str) -> None:
    """Raises `JobError` for what can't be the path of an image: the image itself, as base64."""
    begins_so = path.startswith(_BASE64_STARTS) and _BASE64_SHORT.fullmatch(path)
    if path[:5].lower() == "data:" or begins_so or _BASE64.fullmatch(path):
        raise JobError(
            f"{path[:_SHOWN]!r}... is not a path: base64 of an image is not supported; write a file and name it"
        )
    if len(path) > _MOST_LETTERS:
        raise JobError(f"{path[:_SHOWN]!r}... is not a path: it has {len(path)} letters")


def scheme_of(path: str) -> str | None:
    """The scheme of an address; None of a path, also of one with a drive of Windows, which has one letter."""
    found = _SCHEME.match(path)
    return found[1].lower() if found else None


def read_file(path: str) -> bytes:
    """The bytes of an image's file on this machine.

    Raises:
      JobError: if there is none, or it is no file, or far too large, or lies elsewhere.
    """
    check_path(path)
    scheme = scheme_of(path)
    if scheme:
        raise JobError(f"{path}: images are read from this machine; {scheme}: is not supported here")
    try:
        with open(path, "rb", opener=_without_waiting) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise JobError(f"{path} is a {'folder' if stat.S_ISDIR(status.st_mode) else 'device'}, not an image")
            if status.st_size > MAX_BYTES:
                raise JobError(f"{path} has {status.st_size} bytes; expected an image of up to {MAX_BYTES}")
            return opened.read()
    except IsADirectoryError:
        raise JobError(f"{path} is a folder, not an image") from None
    except FileNotFoundError:
        raise JobError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, JobError):
            raise
        raise JobError(f"{path} can't be read ({error})") from error


def _without_waiting(path: str, flags: int) -> int:
    """Opens also what would wait for a writer, so that it can be looked at."""
    return os.open(path, flags | os.O_NONBLOCK)


def open_inputs(job: Job, read: Read) -> InputFiles:
    """Reads the files that a job names.

    Raises:
      JobError: naming field and file, if one can't be used.
    """
    digests: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []

    def data(field: str) -> list[tuple[str, bytes]]:
        found = []
        for path in IMAGE_FIELDS[field](getattr(job, field)):
            try:
                found.append((path, read(path)))
            except (OSError, ValueError) as error:
                raise JobError(f"{field}: {error}") from error
            except LookupError as error:
                raise JobError(f"{field}: there is no {path}") from error
            if not isinstance(found[-1][1], bytes | bytearray | memoryview):
                raise JobError(f"{field}: {path} was read as {type(found[-1][1]).__name__}; expected its bytes")
        return found

    def opened(field: str, decode: Callable[[bytes, str], Any]) -> tuple[CachedImage, ...]:
        try:
            found = tuple(decoded(decode, each, path) for path, each in data(field))
        except ImageError as error:
            raise JobError(f"{field}: {error}") from error
        if found:
            digests[field] = tuple(each.digest for each in found)
        notes.extend(f"{field}: {note}" for each in found for note in each.notes)
        return found

    image = next(iter(opened("image", read_image)), None)
    mask = next(iter(opened("mask_image", read_grey)), None)
    if mask is not None and image is not None:
        try:
            mask = mask.map(masks.fitted_to, *image.values.shape[:2])
        except ImageError as error:
            turned = f" ({', '.join(image.notes)})" if image.notes else ""
            raise JobError(f"mask_image: {job.mask_image}: {error}{turned}") from error
    nets = len(job.controls)
    controls = opened("control_image", read_image) if nets else ()
    if nets and not controls:
        assert image is not None, "a job has either"
        controls = (image,)
    depth = next(iter(opened("depth_image", read_grey)), None)
    return InputFiles(image, mask, depth, controls * (nets if len(controls) == 1 else 1), digests, tuple(notes))


def with_size(job: Job, files: InputFiles, factor: int) -> Job:
    """The job with the size of its input image where it gives none: rounded down to multiples of `factor`.

    Raises:
      JobError: if that is larger than is sensible without being asked for.
    """
    image = files.image or next(iter(files.controls), None)
    if image is None or (job.height and job.width) or job.only_masked:
        return job
    rows, columns = image.values.shape[:2]
    field = "image" if files.image else "control_image"
    if not job.height and not job.width and rows * columns > MAX_UNASKED**2:
        raise JobError(
            f"{field}: {getattr(job, field)} has {columns}x{rows} pixels, and the row does not say how large the image "
            f"is to be: more than {MAX_UNASKED}x{MAX_UNASKED} are not drawn unless width and height say so"
        )
    # Of the image's proportions, where one side is said.
    scale = job.height / rows if job.height else job.width / columns if job.width else 1
    height, width = snapped(max(1, round(rows * scale)), max(1, round(columns * scale)), factor)
    if max(height, width) > MAX_SIDE:
        raise JobError(f"{field}: {getattr(job, field)} has {columns}x{rows} pixels: say both width and height")
    return dataclasses.replace(job, height=job.height or height, width=job.width or width)


def by_content(job: Job, digests: Mapping[str, tuple[str, ...]]) -> Job:
    """The job with its input images named by their sha256: their paths do not decide the image."""
    if not digests:
        return job
    named: dict[str, Any] = {field: "; ".join(found) for field, found in digests.items()}
    return dataclasses.replace(job, **named)


def to_metadata(digests: Mapping[str, tuple[str, ...]], notes: Sequence[str]) -> str:
    """What the metadata say of input images, as JSON; nothing where there are none."""
    if not digests:
        return ""
    return json.dumps({"sha256": {field: list(found) for field, found in digests.items()}, "notes": list(notes)})


def fit_inputs(job: Job, files: InputFiles, factor: int, wants_depth: bool) -> InputImages:
    """A job's input images as its programs take them, but for depth that is to be estimated: see `with_depth`.

    Args:
      job: with its size.
      files: its input images.
      factor: pixels to a latent.
      wants_depth: whether the UNet sees it.

    Raises:
      JobError: if a mask has nothing to be drawn, or an image can't be fitted.
    """
    assert job.height is not None and job.width is not None, "the job is not resolved"
    size = job.height, job.width
    region, mask, image, whole, whole_mask = None, None, files.image, None, None
    if image is not None and files.mask is not None:
        mask = files.mask.map(masks.inverted) if job.invert_mask else files.mask
        kind = "black" if job.invert_mask else "white"
        if not mask.values.any():
            raise JobError(f"mask_image: {job.mask_image}: nothing of it is {kind}")
        if job.only_masked:
            whole, soft = image, mask.map(masks.blurred, job.mask_blur)
            try:
                region = Region(*masks.crop_region(soft.values, job.only_masked_padding, size))
            except ImageError as error:
                raise JobError(f"mask_image: {job.mask_image}: {error}") from error
            whole_mask = soft.map(_cropped, region)  # without what is around it
            image, mask = image.map(_fitted_part, region, size), whole_mask.map(fitted_mask, *size, "stretch")
        else:
            image = _sized("image", job, fitted, image)
            mask = _sized("mask_image", job, fitted_mask, mask).map(masks.blurred, job.mask_blur)
        if job.keep_unmasked and whole is None:
            whole, whole_mask = image, mask
    elif image is not None:
        image = _sized("image", job, fitted, image)
    latent_mask = None if mask is None else _latent_mask(job, mask.values, factor)
    depth, controls = files.depth, files.controls
    if region is not None and whole is not None:
        shape = whole.values.shape
        depth = None if depth is None else depth.map(_part, region, shape)
        controls = tuple(each.map(_fitted_shown, region, shape, size) for each in controls)
    else:
        field = "control_image" if job.control_image else "image"
        controls = tuple(_sized(field, job, fitted, each) for each in controls)
    if region is None and depth is not None and job.resize_mode != "stretch":
        depth = _sized("depth_image", job, fitted_grey, depth)
    preprocessors = [read_preprocessor(name) for name in _preprocessors(job)]
    return InputImages(
        image=image.values if image and job.image else None,
        mask=mask and mask.values,
        latent_mask=latent_mask,
        depth=depth and depth.values,
        depth_from=image.values if image and depth is None and wants_depth else None,
        controls=tuple(
            (each if kind == DEPTH_PREPROCESSOR else each.map(PREPROCESSORS[kind], *numbers)).values
            for each, (kind, numbers) in zip(controls, preprocessors, strict=True)
        ),
        controls_by_depth=tuple(kind == DEPTH_PREPROCESSOR for kind, _ in preprocessors),
        whole=whole and whole.values,
        whole_mask=whole_mask and whole_mask.values,
        region=region,
    )


def _latent_mask(job: Job, mask: Float32[np.ndarray, "h w"], factor: int) -> Float32[np.ndarray, "i j"]:
    """The mask of the latents; raises `JobError` if there is nothing in it."""
    binary = (mask >= masks.HALF).astype(mask.dtype) if job.binarize_mask else mask
    height, width = mask.shape
    found = masks.latent_mask(binary, height // factor, width // factor)
    if not found.any():
        kind = "black" if job.invert_mask else "white"
        raise JobError(f"mask_image: {job.mask_image}: at {width}x{height} pixels no latent of it is {kind}")
    return found


def _sized(field: str, job: Job, fit: Callable[..., np.ndarray], image: CachedImage) -> CachedImage:
    """An image of a job in the size of that to be made; raises the field's `JobError` if that can't be."""
    try:
        return image.map(fit, job.height, job.width, job.resize_mode)
    except ImageError as error:
        raise JobError(f"{field}: {getattr(job, field)}: {error}") from error


def _cropped(values: np.ndarray, region: Region) -> np.ndarray:
    return values[region.top : region.bottom, region.left : region.right].copy()


def _fitted_part(
    pixels: UInt8[np.ndarray, "h w 3"], region: Region, size: tuple[int, int]
) -> UInt8[np.ndarray, "y x 3"]:
    return fitted(_cropped(pixels, region), *size, "stretch")


def _fitted_shown(
    pixels: UInt8[np.ndarray, "h w 3"], region: Region, whole: tuple[int, ...], size: tuple[int, int]
) -> UInt8[np.ndarray, "y x 3"]:
    """As `_fitted_part`, of an image of another size that shows the same."""
    return fitted(_part(pixels, region, whole), *size, "stretch")


def _part(values: np.ndarray, region: Region, whole: tuple[int, ...]) -> np.ndarray:
    """What lies in the region of an image of that shape, of something of any size that shows the same."""
    rows, columns = (
        slice(start * size // side, -(-end * size // side))
        for start, end, size, side in (
            (region.top, region.bottom, values.shape[0], whole[0]),
            (region.left, region.right, values.shape[1], whole[1]),
        )
    )
    return values[rows, columns]


def _preprocessors(job: Job) -> tuple[str, ...]:
    named, nets = split(job.control_preprocessor), len(job.controls)
    return named if len(named) == nets else named * nets


def with_depth(images: InputImages, estimate: Depth) -> InputImages:
    """Input images with the depth that was still to be estimated."""
    depth = images.depth if images.depth_from is None else estimate(images.depth_from)
    controls = tuple(
        _depth_map(pixels, estimate) if by_depth else pixels
        for pixels, by_depth in zip(images.controls, images.controls_by_depth, strict=True)
    )
    return images._replace(depth=depth, depth_from=None, controls=controls, controls_by_depth=(False,) * len(controls))


def _depth_map(pixels: UInt8[np.ndarray, "h w 3"], estimate: Depth) -> UInt8[np.ndarray, "h w 3"]:
    """How near each pixel is, from black (the farthest) to white."""
    height, width = pixels.shape[:2]
    near = fitted_grey(estimate(pixels), height, width, "stretch")
    low, high = near.min(), near.max()
    grey = np.round((near - low) / max(high - low, np.float32(1e-12)) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def paste(image: UInt8[np.ndarray, "h w 3"], images: InputImages) -> UInt8[np.ndarray, "y x 3"]:
    """A drawn image in the one of which it is a part; where nothing was repainted that is as it came."""
    assert images.whole is not None and images.whole_mask is not None, "such an image is not pasted"
    if images.region is None:
        return masks.pasted(images.whole, image, images.whole_mask)
    top, left, bottom, right = images.region
    made = images.whole.copy()
    part = made[top:bottom, left:right]
    part[...] = masks.pasted(part, fitted(image, bottom - top, right - left, "stretch"), images.whole_mask)
    return made
