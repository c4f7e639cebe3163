"""Proves that the images of an output are what their metadata say: makes them again and compares."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines import trust
from pipelines.sinks import open_output
from pipelines.sinks.sink import Finding, Sink, format_of
from sdjax.engine.engine import Engine, Result
from sdjax.engine.fingerprint import PACKAGES
from sdjax.engine.passes import Task
from sdjax.engine.planner import LORA_MODES
from sdjax.images.encode import FORMATS, decode, encode, read_metadata
from sdjax.jobs.a1111_text import a1111_text
from sdjax.jobs.job import FIELDS
from sdjax.jobs.records import job_of
from sdjax.messages import quoted
from sdjax.model import DTYPES
from sdjax.models.vae_tiles import tile_of

# Across kinds of device and versions the promise is this, in steps of 255, for this share of the values.
TOLERANCE, SHARE = 1, 0.999
# In a lossy format such a difference can move a coefficient to the next step of its scale.
LOSSY_TOLERANCE = 8
# What an image's metadata must hold for it to be made again, and what they may hold besides, of which types.
_NEEDED: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("width", "height", "batch_size"), (int,)),
    **dict.fromkeys(("prompt", "id", "model_digest", "dtype", "device_kind", "jaxlib", "sdjax"), (str,)),
    "seed": (int, str),
}
_MAY_HOLD: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("image_width", "image_height", "vae_tile"), (int,)),
    **dict.fromkeys(("vae_dtype", "lora_mode", "pictures", "adapters_applied"), (str,)),
}
_CHOICES: Mapping[str, Collection[str]] = {"dtype": DTYPES, "vae_dtype": DTYPES, "lora_mode": LORA_MODES}
# What damaged or invented metadata make of code that takes them for ours.
_NONSENSE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)

# Images that are prepared at once, each with the images that it begins with.
_AT_ONCE = 64
# Fields that make another program, or other merged weights.
_SHARED = ("adapters_applied", "width", "height", "sampler", "controlnets", "input_image", "mask_image", "hires_scale")


class Report(NamedTuple):
    """What `verify` found.

    images: in the output.
    remade: of these, made again and compared.
    exact: of these, the same to the last byte of the file.
    other: of the images that were to be made again, those which another model made: these are not compared.
    """

    images: int
    remade: int
    exact: int
    other: int
    findings: tuple[Finding, ...]


class Image(NamedTuple):
    """An image that is to be made again: its name in the output, and its own metadata."""

    name: str
    metadata: dict[str, Any]


# What of an engine's settings images of one output may differ in; of these what their metadata say.
Settings = Mapping[str, Any]
_SETTINGS = ("batch_size", "dtype", "vae_dtype", "lora_mode")


def _by_settings(images: Sequence[Image]) -> Iterator[tuple[Settings, list[Image]]]:
    """Images by what their engine was set to, as few engines as will do."""
    tiles = sorted({image.metadata["vae_tile"] for image in images if "vae_tile" in image.metadata})
    modes = [image.metadata["lora_mode"] for image in images if "lora_mode" in image.metadata]
    groups: dict[str, tuple[dict[str, Any], list[Image]]] = {}
    for image in images:
        metadata = image.metadata
        settings = {name: metadata[name] for name in _SETTINGS if name in metadata}
        # One that says nothing of these was made without, whatever the engine is set to.
        if modes:
            settings.setdefault("lora_mode", modes[0])
        # An upscaler may have decoded all of what the image is in the end.
        height, width = (max(metadata[side], metadata.get(f"image_{side}", 0)) for side in ("height", "width"))
        whole = (tile for tile in tiles if not tile_of(height, width, tile))
        settings["vae_tile"] = metadata.get("vae_tile") or next(whole, 0)
        groups.setdefault(json.dumps(settings, sort_keys=True), (settings, []))[1].append(image)
    yield from (groups[key] for key in sorted(groups))


def sampled(image_id: str, share: float) -> bool:
    """Whether an image is among the share that is made again: decided by its id, the same every time."""
    return int(image_id[-8:], 16) < share * 16**8


def count_sampled(out: str, share: float) -> int:
    """How many images of an output are among the share that is made again."""
    return sum(sampled(image.id, share) for image in open_output(out).images())


def regenerate(
    out: str,
    engine_for: Callable[[Settings], Engine],
    share: float,
    on_made: Callable[[], None] = lambda: None,
    trusted: bool = True,
) -> Report:
    """Makes a share of the images again.

    Args:
      out: an output of `generate`.
      engine_for: an engine with the output's model, for images that were made with these settings.
      share: of the images, 0 to 1.
      on_made: called after each that was to be made again.
      trusted: whether as much may be computed as the metadata say, however much that is.

    Raises:
      StorageError: if the output can't be read.
    """
    sink = open_output(out)
    findings = list(sink.check())
    broken = {finding.file for finding in findings}
    count, chosen = 0, list[Image]()
    for item in sink.images():
        count += 1
        if sampled(item.id, share) and item.name not in broken:
            metadata = read_metadata(sink.read(item.name), sink.path(item.name))
            if problem := unusable(metadata) or (None if trusted else trust.too_large(metadata)):
                on_made()
                findings.append(Finding(item.name, problem))
            else:
                chosen.append(Image(item.name, metadata))
    remade = exact = other = 0
    for comparison in _compare(sink, engine_for, chosen):
        on_made()
        if comparison is None:
            other += 1
            continue
        remade += comparison.same is not None
        exact += comparison.same is True
        if comparison.problem:
            findings.append(Finding(sink.path(comparison.name), comparison.problem))
    return Report(count, remade, exact, other, tuple(findings))


def unusable(metadata: Mapping[str, Any]) -> str | None:
    """Why nothing can be made of an image's metadata; None if it may be."""
    if missing := [key for key in _NEEDED if key not in metadata]:
        return f"its metadata lack {', '.join(missing)}"
    for key, kinds in {**_NEEDED, **_MAY_HOLD}.items():
        value = metadata.get(key)
        if key in metadata and (not isinstance(value, kinds) or isinstance(value, bool)):
            return f"its metadata: {key} = {quoted(value)}: expected {' or '.join(kind.__name__ for kind in kinds)}"
        if isinstance(value, int) and key != "seed" and value < (key == "batch_size"):
            return f"its metadata: {key} = {value}: expected {1 if key == 'batch_size' else 0} or more"
        if value is not None and key in _CHOICES and value not in _CHOICES[key]:
            return f"its metadata: {key} = {quoted(value)}: expected one of {', '.join(_CHOICES[key])}"
    return None


class Comparison(NamedTuple):
    """Of an image with the one that was made again.

    name: in the output.
    problem: what is wrong with it, None if nothing is.
    same: whether its file is the same; None if it could not be made again.
    """

    name: str
    problem: str | None
    same: bool | None


def _compare(
    sink: Sink, engine_for: Callable[[Settings], Engine], images: Sequence[Image]
) -> Iterator[Comparison | None]:
    """One for each image, in any order; None for those of another model."""
    for settings, members in _by_settings(images):
        engine = engine_for(settings)
        ours = [image for image in members if image.metadata["model_digest"] == engine.model.digest]
        yield from [None] * (len(members) - len(ours))
        # Beside each other what shares programs, so that batches are full.
        ours.sort(key=lambda image: [str(image.metadata.get(name)) for name in _SHARED])
        for first in range(0, len(ours), _AT_ONCE):
            yield from _compare_some(sink, engine, ours[first : first + _AT_ONCE])


def _compare_some(sink: Sink, engine: Engine, images: Sequence[Image]) -> Iterator[Comparison]:
    tasks: dict[str, Task] = {}
    by_id: dict[str, list[Image]] = {}  # several where other versions made the same job
    for image in images:
        try:
            task = engine.prepare(job_of(image.metadata))
        except Exception as error:  # what images, adapters and networks may raise: it is this image's
            yield Comparison(image.name, f"can't be made again: {error}", None)
            continue
        tasks[task.id] = task
        by_id.setdefault(task.id, []).append(image)
    for result in engine.run(tasks.values()):
        for image in by_id[result.metadata["id"]]:
            yield _compare_one(sink, result, image)


def _compare_one(sink: Sink, result: Result, image: Image) -> Comparison:
    if result.problem:
        return Comparison(image.name, f"can't be made again: {result.problem}", None)
    try:
        return Comparison(image.name, *_judge(result.image, result.metadata, image, sink))
    except _NONSENSE as error:
        return Comparison(image.name, f"its metadata are not what generate writes: {error!r:.300}", None)


def _judge(pixels: np.ndarray, ours: Any, image: Image, sink: Sink) -> tuple[str | None, bool]:
    name, theirs, kind = sink.path(image.name), image.metadata, format_of(image.name)
    data = sink.read(image.name)
    made = encode(pixels, theirs, a1111_text(theirs), kind)
    if made == data:
        explained = ours["id"] == theirs["id"] or _differing(ours, theirs) or _others(ours, theirs)
        return (None if explained else "its id is not that of its metadata"), True
    differing = _differing(ours, theirs)
    if others := _others(ours, theirs):
        return f"{', '.join(others)} is another file now than the image was made with", False
    if not differing:
        return "made again it is not the same", False
    lossless = FORMATS[kind].lossless
    expected = pixels if lossless else decode(made, name)
    distance = np.abs(decode(data, name).astype(int) - expected.astype(int))
    if float((distance <= (TOLERANCE if lossless else LOSSY_TOLERANCE)).mean()) < SHARE:
        return f"made again with another {', '.join(differing)} it differs by more than rounding", False
    return None, False


def _others(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """The files that are others now than the image was made with."""
    return [*_other_adapters(ours, theirs), *_other_images(ours, theirs), *_other_networks(ours, theirs)]


def _other_images(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """The fields whose images have changed."""
    now, then = (json.loads(each.get("pictures") or "{}").get("sha256", {}) for each in (ours, theirs))
    return [f"{field} ({theirs[FIELDS[field].column]})" for field in then if field in now and now[field] != then[field]]


def _other_networks(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """The networks that acted on an image, where they have changed."""
    return [
        f"{field} ({named})"
        for field, named, digest in (
            ("controlnets", theirs.get("controlnets"), "control_digests"),
            ("depth_model", "of the run", "depth_digest"),
            ("upscaler", theirs.get("upscaler"), "upscaler_digest"),
            ("hires_upscaler", theirs.get("hires_upscaler"), "hires_upscaler_digest"),
        )
        if ours.get(digest) != theirs.get(digest)
    ]


def _other_extensions(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """The extensions of the image, where they are of another version now."""
    now, then = (str(each.get("extensions") or "").split("; ") for each in (ours, theirs))
    return [each for each in then if each and each not in now]


def _differing(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """What of the fingerprint differs from that of the image."""
    names = ("device_kind", "device_packages", "settings", "jax", "jaxlib", "sdjax", *PACKAGES, "pillow")
    differing = [name for name in names if ours.get(name) != theirs.get(name)]
    return differing + _other_extensions(ours, theirs)


def _other_adapters(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """The names of adapters whose files have changed."""
    now, then = (json.loads(each.get("adapters_applied") or "[]") for each in (ours, theirs))
    digests = {(each["kind"], each["name"]): each["digest"] for each in now}
    return [each["name"] for each in then if digests.get((each["kind"], each["name"])) not in (None, each["digest"])]
