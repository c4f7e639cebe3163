"""Making jobs with one revision, by its own command line, and reading the pixels of what came out."""

import collections
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml
from PIL import Image, ImageSequence

from benchmarks.same_pixels.jobs import FIRST_SEED, SEEDS_OF_A_ROW, Row, Run

# What every revision has: the command line as a process of its own.
_GENERATE = "from pipelines.cli import program; program()"
# Keys of the configuration as `jobs` has them, in revisions whose configuration has sections, which this file tells.
_SECTIONS_FILE = PurePath("pipelines", "config", "sections.py")
_SECTION_KEYS: Mapping[str, str] = {
    "model": "model.name",
    "dtype": "model.dtype",
    "vae": "model.vae",
    "vae_dtype": "model.vae_dtype",
    "pickled": "model.pickled",
    "lora_folder": "library.loras",
    "hypernetwork_folder": "library.hypernetworks",
    "embedding_folder": "library.embeddings",
    "controlnet_folder": "library.controlnets",
    "upscaler_folder": "library.upscalers",
    "depth_model": "library.depth_model",
    "classifier": "library.classifier",
    "wildcards": "library.wildcards",
    "batch_size": "engine.batch_size",
    "lora_mode": "engine.lora_mode",
    "vae_tile": "engine.vae_tile",
    "format": "output.format",
    "animation": "output.animation",
    "repeat": "run.repeat",
}
# Of what a command printed, in an error.
_SHOWN_LETTERS = 500


class RowResult(NamedTuple):
    """What came out of a row.

    digests: the sha256 of the pixels of each image, by "image" or by the name of a file of previews; sorted.
    metadata: of its images, sorted by seed and prompt.
    reason: why it, or an image of it, was rejected; "" if nothing was.
    """

    digests: Mapping[str, list[str]]
    metadata: list[Mapping[str, Any]]
    reason: str


def config_text(run_keys: Mapping[str, Any], tree: Path, files: Path) -> str:
    """The run's YAML as the revision in `tree` reads it.

    `run_keys` are as `jobs` has them: flat, as in revisions before there were sections.
    """
    keys = {key: str(files / value) if isinstance(value, PurePath) else value for key, value in run_keys.items()}
    if not (tree / _SECTIONS_FILE).is_file():
        return yaml.safe_dump(keys)
    sections: dict[str, dict[str, Any]] = {}
    for key, value in keys.items():
        section, _, name = _SECTION_KEYS[key].partition(".")
        sections.setdefault(section, {})[name] = value
    return yaml.safe_dump(sections)


def make(tree: Path, run: Run, files: Path, folder: Path, compiled: Path) -> list[RowResult]:
    """Makes the jobs of a run with the revision in `tree`; gives what came out of each row.

    Args:
      tree: the revision's files.
      run: the jobs.
      files: what they name.
      folder: an empty one for the output, named after the run.
      compiled: folder of JAX's persistent compilation cache.

    Returns:
      A result for each row; where the command made nothing at all, all are rejected with what it printed.
    """
    # Beside the files, so that rows name images relative to it.
    prompts, config, out = files / f"{folder.name}.jsonl", folder / "config.yaml", folder / "out"
    prompts.write_text("".join(json.dumps(row.fields) + "\n" for row in run.rows), "utf-8")
    config.write_text(config_text(run.keys, tree, files), "utf-8")
    arguments = ["generate", str(prompts), str(out), "--config", str(config), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", _GENERATE, *arguments],
        cwd=tree,
        env=_environment(tree, run.devices, compiled),
        capture_output=True,
        text=True,
        check=False,
    )
    if not (out / "metadata.jsonl").is_file():
        reason = f"the command ended with status {done.returncode}: {done.stderr.strip()[-_SHOWN_LETTERS:]}"
        return [RowResult({}, [], reason) for _ in run.rows]
    return results_of(out, run.rows)


def _environment(tree: Path, devices: int, compiled: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(tree),
        "SDJAX_CACHE": str(compiled),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }


def results_of(out: Path, rows: Sequence[Row]) -> list[RowResult]:
    """What came out of each row, whose seeds are those that `jobs` gives; other seeds are of the row without one."""
    unseeded = next((number for number, row in enumerate(rows) if not row.seeds), None)
    found: dict[int, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for metadata in _lines(out / "metadata.jsonl"):
        number = (int(metadata["seed"]) - FIRST_SEED) // SEEDS_OF_A_ROW
        found[number if 0 <= number < len(rows) else unseeded].append(metadata)
    reasons = {reject["line"] - 1: str(reject["reason"]) for reject in _lines(out / "rejects.jsonl")}
    previews = collections.defaultdict(list)
    for file in out.rglob("*.*"):
        previews[file.stem].append(file)
    return [_row_result(out, found[number], previews, reasons.get(number, "")) for number in range(len(rows))]


def _row_result(
    out: Path, metadata: list[Mapping[str, Any]], files: Mapping[str, list[Path]], reason: str
) -> RowResult:
    """The result of the images with these metadata; `files` are those of the output by their names without ending."""
    digests = collections.defaultdict(list)
    for each in metadata:
        image = out / each["file_name"]
        for file in files[image.stem]:
            kind = "image" if file == image else f"previews ({file.suffix})"
            digests[kind].append(pixels_digest(file))
    order = sorted(metadata, key=lambda each: (int(each["seed"]), each["prompt"]))
    return RowResult({kind: sorted(each) for kind, each in sorted(digests.items())}, order, reason)


def pixels_digest(file: Path) -> str:
    """The sha256 of the mode, size and decoded pixels of each frame."""
    digest = hashlib.sha256()
    with Image.open(file) as image:
        for frame in ImageSequence.Iterator(image):
            digest.update(f"{frame.mode} {frame.size}".encode() + frame.tobytes())
    return digest.hexdigest()


def _lines(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.is_file():
        yield from map(json.loads, file.read_text("utf-8").splitlines())
