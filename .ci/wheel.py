"""Builds a wheel, installs it into a new environment, and uses it from an empty folder, as a user does.

First the command line, with all that it needs; then the library, where Beam and pyarrow are not installed.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "wheel"
PYTHON = WORK / "venv" / "bin" / "python"
PROMPTS = ("a red apple", "a panda")
WITHOUT = ("apache-beam", "pyarrow")
SAMPLE = """
import importlib.util, sys
import sdjax

assert not {importlib.util.find_spec(name) for name in ("apache_beam", "pyarrow")} - {None}
[result] = sdjax.generate(sdjax.load("emoji"), [sdjax.Job(prompt="a red apple", seed=1, steps=4)])
assert result.finite and result.image.shape == (64, 64, 3) and result.image.std() > 1, result
print(f"{sdjax.__file__}: {result.metadata['id']}")
"""


def main() -> None:
    """All of it; a check that fails ends it."""
    shutil.rmtree(WORK, ignore_errors=True)
    folder = WORK / "empty"
    folder.mkdir(parents=True)
    wheel = build()
    check_contents(wheel)
    run(sys.executable, "-m", "venv", WORK / "venv")
    pip("install", "--constraint", ROOT / "requirements.lock", wheel)
    generate(folder)
    pip("uninstall", "--yes", *WITHOUT)
    run(PYTHON, "-c", SAMPLE, folder=folder)


def build() -> Path:
    """The wheel, of what is there now: what an earlier build left would go into it."""
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", WORK, ROOT)
    [wheel] = WORK.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """All files of the packages, code and data, are in it, and nothing else."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "sdjax", "pipelines")
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    expected = {name for name in listed if (ROOT / name).is_file()}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected, f"not in the wheel: {expected - packed}; only there: {packed - expected}"


def generate(folder: Path) -> None:
    """`sdjax generate` on the embedded model makes images and metadata."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    run(PYTHON.with_name("sdjax"), "generate", "prompts.txt", "out", "--set", "steps=4", "--quiet", folder=folder)
    rows = [json.loads(line) for line in (folder / "out" / "metadata.jsonl").read_text().splitlines()]
    assert sorted(row["prompt"] for row in rows) == sorted(PROMPTS), rows
    for row in rows:
        image = (folder / "out" / row["file_name"]).read_bytes()
        assert image.startswith(b"\x89PNG") and row["id"].encode() in image, row


def pip(*arguments: str | Path) -> None:
    """In the new environment."""
    run(PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """A command that has to succeed; nothing of this checkout is on its path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, cwd=folder, env=environment, check=True)


main()
