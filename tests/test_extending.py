"""The examples of docs/extending.md do what the page says, each from a folder outside of this project.

What packages add is installed by pip; what is a change of sdjax itself is made in a copy of it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
# A line in italics, a block of code, and maybe one of what it prints.
_BLOCK = re.compile(r"^(\*[^\n]+)\n\n```(\w+)\n(.*?)```\n(?:```text\n(.*?)```\n)?", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"\*([\w./]+)\*")
_EDIT = re.compile(r"\*(\S+), (before|after|instead of)\* `(.+)`")
_RUN, _RUN_CHANGED = "*Try it:*", "*Try it in the changed sdjax:*"


class Block(NamedTuple):
    """A piece of code of the page: what is to be done with it, and what it prints."""

    mark: str
    language: str
    code: str
    printed: str | None
    section: str


def _blocks() -> list[Block]:
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        found += [Block(*match.groups(), title) for match in _BLOCK.finditer(section)]
    return found


BLOCKS = _blocks()
RUNS = [block for block in BLOCKS if block.mark in (_RUN, _RUN_CHANGED)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the page's package."""
    source, target = tmp_path_factory.mktemp("sdjax-examples"), tmp_path_factory.mktemp("installed")
    for block in BLOCKS:
        if named := _FILE.fullmatch(block.mark):
            file = source / named[1]
            file.parent.mkdir(exist_ok=True)
            file.write_text(block.code, "utf-8")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return target


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of sdjax with the page's changes."""
    copy = tmp_path_factory.mktemp("changed")
    for package in ("sdjax", "pipelines"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.rmtree(copy / "sdjax" / "assets")
    (copy / "sdjax" / "assets").symlink_to(ROOT / "sdjax" / "assets")
    for block in BLOCKS:
        if edit := _EDIT.fullmatch(block.mark):
            file, place, line = copy / edit[1], edit[2], edit[3]
            text, code = file.read_text("utf-8"), block.code.rstrip("\n")
            assert text.count(line) == 1, f"{edit[1]} has {line!r} {text.count(line)} times"
            new = {"before": f"{code}\n\n\n{line}", "after": f"{line}\n{code}", "instead of": code}[place]
            file.write_text(text.replace(line, new), "utf-8")
    return copy


def run(block: Block, paths: list[Path], folder: Path, programs: Path) -> str:
    """What a block prints, run in an empty folder with these packages."""
    (folder / "bin").mkdir()
    command = folder / "bin" / "sdjax"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipelines.cli "$@"\n', "utf-8")
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONSAFEPATH": "1",
        "SDJAX_CACHE": str(programs),
        "JAX_COMPILATION_CACHE_DIR": str(programs),
    }
    program = ["sh", "-eu", "-c", block.code] if block.language == "sh" else [sys.executable, "-c", block.code]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("block", RUNS, ids=[block.section for block in RUNS])
def test_each_example_does_what_the_page_says(block, installed, changed, compiled_programs, tmp_path):
    base = changed if block.mark == _RUN_CHANGED else ROOT
    assert run(block, [installed, base], tmp_path, compiled_programs) == (block.printed or "")


def test_each_row_of_the_table_has_a_section_that_is_run():
    named = re.findall(r"^\| \[[\w ]+\]\(#([\w-]+)\)", PAGE, re.MULTILINE)
    assert len(named) == 8
    assert {block.section.lower().replace(" ", "-") for block in RUNS} == set(named)
