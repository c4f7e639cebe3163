"""Proves that the pictures of an output are what their metadata say: makes them again and compares."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines import storage, trust
from pipelines.records import METADATA, file_name, problem_of, without_sizes
from sdjax.engine import Engine
from sdjax.images.decode import ImageError
from sdjax.images.encode import FORMATS, decode, encode, read_metadata
from sdjax.images.previews import check_previews
from sdjax.job import TOLD_AS, job_of, with_seeds_as_text
from sdjax.messages import quoted
from sdjax.model import DTYPES
from sdjax.models.vae_tiles import tile_of
from sdjax.plan import LORA_MODES, Task

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

# Pictures that are prepared at once, each with the pictures that it begins with.
_AT_ONCE = 64
# Fields that make another program, or other merged weights.
_SHARED = ("adapters_applied", "width", "height", "sampler", "controlnets", "input_image", "mask_image", "hires_scale")


class Finding(NamedTuple):
    """What is wrong with a file."""

    file: str
    problem: str


class Report(NamedTuple):
    """What `verify` found.

    pictures: in the output.
    remade: of these, made again and compared.
    exact: of these, the same to the last byte of the file.
    other: of the pictures that were to be made again, those which another model made: these are not compared.
    """

    pictures: int
    remade: int
    exact: int
    other: int
    findings: tuple[Finding, ...]


# What of an engine's settings pictures of one output may differ in; of these what their metadata say.
Settings = Mapping[str, Any]
_SETTINGS = ("batch_size", "dtype", "vae_dtype", "lora_mode")


def _by_settings(
    pictures: Sequence[tuple[str, dict[str, Any]]],
) -> Iterator[tuple[Settings, list[tuple[str, dict[str, Any]]]]]:
    """Pictures by what their engine was set to, as few engines as will do."""
    tiles = sorted({metadata["vae_tile"] for _, metadata in pictures if "vae_tile" in metadata})
    modes = [metadata["lora_mode"] for _, metadata in pictures if "lora_mode" in metadata]
    groups: dict[str, tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]] = {}
    for path, metadata in pictures:
        settings = {name: metadata[name] for name in _SETTINGS if name in metadata}
        # One that says nothing of these was made without, whatever the engine is set to.
        if modes:
            settings.setdefault("lora_mode", modes[0])
        # An upscaler may have decoded all of what the picture is in the end.
        height, width = (max(metadata[side], metadata.get(f"image_{side}", 0)) for side in ("height", "width"))
        whole = (tile for tile in tiles if not tile_of(height, width, tile))
        settings["vae_tile"] = metadata.get("vae_tile") or next(whole, 0)
        groups.setdefault(json.dumps(settings, sort_keys=True), (settings, []))[1].append((path, metadata))
    yield from (groups[key] for key in sorted(groups))


def sampled(image_id: str, share: float) -> bool:
    """Whether a picture is among the share that is made again: decided by its id, the same every time."""
    return int(image_id[-8:], 16) < share * 16**8


def check_manifest(out: str) -> Iterator[Finding]:
    """Compares `metadata.jsonl` with the pictures that are there."""
    files = {file_name(done.id, done.path.rpartition(".")[2]): done.path for done in storage.list_done(out)}
    manifest = storage.join(out, METADATA)
    if not storage.exists(manifest):
        yield Finding(METADATA, "is missing; run the same generate command again")
        return
    steps: dict[str, dict[str, int]] = {}
    for done in storage.list_steps(out):
        steps.setdefault(done.id, {})[done.path] = done.size
    seen = set()
    for number, row in enumerate(storage.read_jsonl(manifest), 1):
        if problem := problem_of(row):
            yield Finding(f"{METADATA}, line {number}", f"not what generate writes: {problem}")
            continue
        name = row["file_name"]
        if name in seen:
            yield Finding(name, f"stands twice in {METADATA}")
        elif name not in files:
            yield Finding(name, f"stands in {METADATA}, but there is no such picture")
        else:
            yield from _check_row(row, files[name], steps.get(row["id"], {}))
        seen.add(name)
    for name in sorted(files.keys() - seen):
        yield Finding(name, f"is not in {METADATA}; run the same generate command again")


def _check_row(row: dict[str, Any], path: str, steps: Mapping[str, int]) -> Iterator[Finding]:
    name = row["file_name"]
    try:
        data = storage.read_limited(path)
        inside = read_metadata(data, path)
    except (ImageError, storage.StorageError) as error:
        yield Finding(name, f"{error}; delete it and run the same generate command again")
        return
    if {"file_name": name, **with_seeds_as_text(inside)} != without_sizes(row):
        yield Finding(name, f"its own metadata differ from its row in {METADATA}")
    elif not name.endswith(f"/{row.get('id')}.{name.rpartition('.')[2]}"):
        yield Finding(name, f"it is the picture of another name: its id is {quoted(row.get('id'))}")
    elif row.get("file_size", len(data)) != len(data):
        yield Finding(name, f"it has {len(data)} bytes, and its row states {quoted(row['file_size'])}")
    elif {row.get(column) for column in ("steps_size", "animation_size")} - {None, 0, *steps.values()}:
        yield Finding(name, "its previews are missing or of another size; run the same generate command again")
    else:
        yield from _check_previews(steps)


def _check_previews(steps: Mapping[str, int]) -> Iterator[Finding]:
    for path in sorted(steps):
        try:
            check_previews(storage.read_limited(path), path)
        except (ImageError, storage.StorageError) as error:
            yield Finding(path, f"{error}; delete it and run the same generate command again")


def remake(
    out: str,
    engine_for: Callable[[Settings], Engine],
    share: float,
    on_made: Callable[[], None] = lambda: None,
    trusted: bool = True,
) -> Report:
    """Makes a share of the pictures again.

    Args:
      out: an output of `generate`.
      engine_for: an engine with the output's model, for pictures that were made with these settings.
      share: of the pictures, 0 to 1.
      on_made: called after each that was to be made again.
      trusted: whether as much may be computed as the metadata say, however much that is.

    Raises:
      StorageError: if the output can't be read.
    """
    findings = list(check_manifest(out))
    broken = {finding.file for finding in findings}
    found: list[tuple[str, dict[str, Any]]] = []
    pictures = 0
    for done in storage.list_done(out):
        pictures += 1
        name = file_name(done.id, done.path.rpartition(".")[2])
        if sampled(done.id, share) and name not in broken:
            metadata = read_metadata(storage.read_limited(done.path), done.path)
            problem = unusable(metadata) or (None if trusted else trust.too_large(metadata))
            if problem:
                on_made()
                findings.append(Finding(name, problem))
                continue
            found.append((done.path, metadata))
    remade = exact = other = 0
    for settings, members in _by_settings(found):
        engine = engine_for(settings)
        ours = [member for member in members if member[1]["model_digest"] == engine.model.digest]
        other += len(members) - len(ours)
        for _ in range(len(members) - len(ours)):
            on_made()
        for path, problem, same in _compare(engine, ours):
            remade += same is not None
            exact += same is True
            if problem:
                findings.append(Finding(path, problem))
            on_made()
    return Report(pictures, remade, exact, other, tuple(findings))


def unusable(metadata: Mapping[str, Any]) -> str | None:
    """Why nothing can be made of an image's metadata; None if it may be."""
    if missing := [key for key in _NEEDED if key not in metadata]:
        return f"its metadata lack {', '.join(missing)}"
    for key, kinds in {**_NEEDED, **_MAY_HOLD}.items():
        value = metadata.get(key)
        if key in metadata and (not isinstance(value, kinds) or isinstance(value, bool)):
            return f"its metadata: {key} = {quoted(value)}: expected {' or '.join(kind.__name__ for kind in kinds)}"
        if isinstance(value, int) and key != "seed" and value < (key == "batch_size"):
            return f"its metadata: {key} = {value}: expected a number of them"
        if value is not None and key in _CHOICES and value not in _CHOICES[key]:
            return f"its metadata: {key} = {quoted(value)}: expected one of {', '.join(_CHOICES[key])}"
    return None


def _compare(
    engine: Engine, members: Sequence[tuple[str, dict[str, Any]]]
) -> Iterator[tuple[str, str | None, bool | None]]:
    """Path, problem and whether the file is the same (None if it could not be made again), for each picture."""
    # Beside each other what shares programs, so that batches are full.
    in_order = sorted(members, key=lambda member: [str(member[1].get(name)) for name in _SHARED])
    for first in range(0, len(in_order), _AT_ONCE):
        yield from _compare_some(engine, in_order[first : first + _AT_ONCE])


def _compare_some(
    engine: Engine, members: Sequence[tuple[str, dict[str, Any]]]
) -> Iterator[tuple[str, str | None, bool | None]]:
    tasks: dict[str, Task] = {}
    files: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # several where other versions made the same job
    for path, metadata in members:
        try:
            task = engine.prepare(job_of(metadata))
        except Exception as error:  # what pictures, adapters and networks may raise: it is this picture's
            yield path, f"can't be made again: {error}", None
            continue
        tasks[task.id] = task
        files.setdefault(task.id, []).append((path, metadata))
    for result in engine.run(tasks.values()):
        for path, metadata in files[result.metadata["id"]]:
            if result.problem:
                yield path, f"can't be made again: {result.problem}", None
            else:
                try:
                    yield path, *_judge(result.image, result.metadata, metadata, path)
                except _NONSENSE as error:
                    yield path, f"its metadata are not what generate writes: {error!r:.300}", None


def _judge(image: np.ndarray, ours: Any, theirs: dict[str, Any], path: str) -> tuple[str | None, bool]:
    stored = storage.read_limited(path)
    kind = next(name for name, known in FORMATS.items() if known.extension == path.rpartition(".")[2])
    if encode(image, theirs, kind) == stored:
        explained = ours["id"] == theirs["id"] or _differing(ours, theirs) or _others(ours, theirs)
        return (None if explained else "its id is not that of its metadata"), True
    differing = _differing(ours, theirs)
    if others := _others(ours, theirs):
        return f"{', '.join(others)} is another file now than the picture was made with", False
    if not differing:
        return "made again it is not the same", False
    lossless = FORMATS[kind].lossless
    expected = image if lossless else decode(encode(image, theirs, kind), path)
    distance = np.abs(decode(stored, path).astype(int) - expected.astype(int))
    if float((distance <= (TOLERANCE if lossless else LOSSY_TOLERANCE)).mean()) < SHARE:
        return f"made again with another {', '.join(differing)} it differs by more than rounding", False
    return None, False


def _others(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """The files that are others now than the picture was made with."""
    return [*_other_adapters(ours, theirs), *_other_pictures(ours, theirs), *_other_networks(ours, theirs)]


def _other_pictures(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """The fields whose pictures have changed."""
    now, then = (json.loads(each.get("pictures") or "{}").get("sha256", {}) for each in (ours, theirs))
    return [
        f"{field} ({theirs[TOLD_AS.get(field, field)]})" for field in then if field in now and now[field] != then[field]
    ]


def _other_networks(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """What else pictures are seen and made with, where it has changed."""
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


def _differing(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """What of the fingerprint differs from that of the picture."""
    names = (
        "device_kind",
        "settings",
        "jax",
        "jaxlib",
        "sdjax",
        "flax",
        "numpy",
        "tokenizers",
        "transformers",
        "pillow",
    )
    return [name for name in names if ours.get(name) != theirs.get(name)]


def _other_adapters(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """The names of adapters whose files have changed."""
    now, then = (json.loads(each.get("adapters_applied") or "[]") for each in (ours, theirs))
    digests = {(each["kind"], each["name"]): each["digest"] for each in now}
    return [each["name"] for each in then if digests.get((each["kind"], each["name"])) not in (None, each["digest"])]
