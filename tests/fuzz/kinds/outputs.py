"""An output of a stranger: its summary, its manifest and what its images say, as verify, sheet and grid read them."""

import functools
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdjax
from pipelines import generate, grid, sheet
from pipelines.config import RunConfigError, settings
from pipelines.sinks import open_sink
from pipelines.trust import TrustError, allowed, made_with, reader, too_large
from pipelines.verify import regenerate, unusable
from sdjax.adapters.files import AdapterError
from sdjax.images.decode import ImageError
from sdjax.images.encode import decode, read_metadata
from sdjax.jobs.job import JobError
from sdjax.jobs.records import job_of
from sdjax.storage import StorageError
from tests import toys

# What readers of outputs may raise, each in words of its own.
REFUSALS = (StorageError, TrustError, RunConfigError, ImageError)
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**64, 10**400, 1.5, 1e308, -0.0, "", " ", "a", "a" * 5000, "../secret.png",
    "/etc/passwd", "images/../../secret.png", "images/00/" + "0" * 32 + ".png", "\0", "\x1b[2J", "\ud800", "\u202e",
    "[", "{}", "emoji", "org/name", "/", [], [1], {}, {"a": {"a": []}}, [[[[]]]], "1..5", "nan", "<lora:x:1>",
    "https://host/x.png", "s3://bucket/x.png", "data:image/png;base64,AAAA", '{"sha256": 3}', '[{"kind": 1}]',
)  # fmt: skip


@functools.cache
def sound(root: Path) -> Path:
    """An output of two images, as a run left it."""
    model = toys.write_toy(root / "model", toys.TINY)
    (root / "p.txt").write_text("a red apple\nthe cat\n")
    keys = {"model": str(model), "engine.batch_size": 1, "steps": 2, "sampler": "euler"}
    (root / "progress").mkdir()
    generate.run_pipeline([str(root / "p.txt")], str(root / "out"), settings.make(keys), [], str(root / "progress"))
    return root / "out"


@functools.cache
def engine() -> sdjax.Engine:
    """Of the model that made it; nothing is drawn."""
    return sdjax.Engine(sdjax.load(OUT[0].parent / "model"), batch_size=1)


OUT: list[Path] = []


def warm(folder: Path) -> None:
    """Makes the sound output, and reads it."""
    OUT.append(sound(folder))
    engine()
    assert not looked_at(shutil.copytree(OUT[0], folder / "copy"))


def case(rng: random.Random, folder: Path) -> bool:
    """Damages one or two things, and reads all."""
    out = shutil.copytree(OUT[0], folder / "out")
    (folder / "secret.png").write_bytes(next(out.rglob("*.png")).read_bytes())
    for _ in range(rng.randint(1, 2)):
        rng.choice((of_summary, of_manifest, of_image, of_bytes))(rng, out)
    return looked_at(out)


def spoiled(rng: random.Random, found: Mapping[str, Any]) -> dict[str, Any]:
    """A dict with a value, or some, replaced, taken away or added."""
    changed = dict(found)
    for _ in range(rng.randint(1, 3)):
        key = rng.choice([*found, "new", "\x1b]0;x\x07", "k" * 3000])
        if rng.random() < 0.1:
            changed.pop(key, None)
        else:
            changed[key] = rng.choice(HOSTILE)
    return changed


def of_summary(rng: random.Random, out: Path) -> None:
    """Its configuration, or all of it."""
    if not (out / "summary.json").is_file():
        return
    summary = read_json((out / "summary.json").read_bytes())
    if rng.random() < 0.1 or not isinstance(summary.get("config"), dict):
        summary = rng.choice(([], 3, "x", {"config": rng.choice(HOSTILE)}, {}))
    else:
        summary["config"] = spoiled(rng, summary["config"])
    (out / "summary.json").write_bytes(json.dumps(summary).encode())


def of_manifest(rng: random.Random, out: Path) -> None:
    """One of its rows."""
    rows = manifest_lines(out) or ["{}"]
    place = rng.randrange(len(rows))
    rows[place] = json.dumps(spoiled(rng, read_json(rows[place])))
    if rng.random() < 0.2:
        rows.append(rows[place])
    (out / "metadata.jsonl").write_text("\n".join(rows))


def manifest_lines(out: Path) -> list[str]:
    """Its lines, as far as they are there and are text."""
    path = out / "metadata.jsonl"
    return path.read_bytes().decode("utf-8", "replace").splitlines() if path.is_file() else []


def of_image(rng: random.Random, out: Path) -> None:
    """What an image says of itself, with its row at one with it or not."""
    path = rng.choice([*sorted(out.rglob("*.png")), out / "none.png"])
    try:
        metadata, pixels = read_metadata(path, ""), decode(path, "")
    except ImageError:
        return
    changed = spoiled(rng, metadata)
    chunks = PngInfo()
    chunks.add_text("sdjax", rng.choice((json.dumps(changed), "[" * 3000, "3", json.dumps(changed)[:-5])))
    Image.fromarray(pixels).save(path, pnginfo=chunks)
    if rng.random() < 0.7:
        name = path.relative_to(out).as_posix()
        rows = [json.dumps({"file_name": name, **changed}) if name in line else line for line in manifest_lines(out)]
        (out / "metadata.jsonl").write_text("\n".join(rows))


def of_bytes(rng: random.Random, out: Path) -> None:
    """Any file: cut, some of its bytes others, empty, or something else in its place."""
    path = rng.choice(sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size))
    data = bytearray(path.read_bytes())
    kind = rng.randrange(5)
    if kind == 0:
        del data[rng.randrange(len(data) + 1) :]
    elif kind == 1:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        data = bytearray(rng.choice((b"", b"\0" * 100, b"[" * 5000, b"\xff\xfe", b"{}\n{}\n", b"null\n")))
    path.unlink()
    if kind == 3:
        path.symlink_to("/dev/null")
    elif kind != 4:
        path.write_bytes(data)


def read_json(text: str | bytes) -> dict[str, Any]:
    """The object that it is; none if it is another thing."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def looked_at(out: Path) -> bool:
    """Reads an output as the commands do; gives whether any of it was refused."""
    refused = False
    for command in (summary_of, manifest_of, sheet_of, grid_of):
        try:
            refused |= bool(command(out))
        except REFUSALS as error:
            assert len(str(error)) < 20_000, str(error)[:500]
            refused = True
        except ValueError as error:  # no images, several at one place
            assert (type(error) is ValueError and str(out) in str(error)) or "several" in str(error), repr(error)
            refused = True
    return refused


def summary_of(out: Path) -> bool:
    """What would be loaded; a model that is not bundled is refused."""
    given = made_with(str(out))
    trusted = allowed(given, {}, trust=True, pickled=False)
    assert trusted == given
    mine = allowed(given, {"model.name": "emoji"}, trust=False, pickled=False)
    assert mine.model.name == "emoji" and not mine.model.pickled
    return False


def manifest_of(out: Path) -> bool:
    """What verify finds without drawing, and what it would draw again."""
    found = [*open_sink(str(out)).check(), *regenerate(str(out), lambda _: engine(), 0.0).findings]
    for path in sorted(out.glob("images/*/*.png")):
        try:
            metadata = read_metadata(path, str(path))
        except ImageError:
            continue
        if unusable(metadata) or too_large(metadata):
            continue
        try:
            engine().prepare(job_of(metadata))
        except (JobError, AdapterError):
            continue
    with_secret = reader(str(out), trust=False)
    try:
        with_secret(str(out.parent / "secret.png"))
    except JobError:
        return bool(found)
    raise AssertionError("a file outside of the output was read")


def sheet_of(out: Path) -> bool:
    """A contact sheet of it."""
    sheet.write(str(out), str(out.parent / "sheet.png"), columns=4, limit=8)
    return False


def grid_of(out: Path) -> bool:
    """A comparison sheet of it."""
    grid.write(str(out), str(out.parent / "grid.png"), grid.Axes(grid.Axis("prompt", None), None, None), {})
    return False
