"""The examples of docs/extending.md do what the page says, each from a folder outside of this project.

What packages add is installed by pip; what is a change of sdjax itself is made in a copy of it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

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


# Runs blocks of Python one after the other, each by itself, and prints what each prints: one process for all, since
# starting takes longer than any of them.
_ONE_BY_ONE = """
import contextlib, io, json, sys, traceback

printed = []
for code in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc(file=out)
    printed.append(out.getvalue())
json.dump(printed, sys.stdout)
"""


class Place(NamedTuple):
    """A folder in which blocks are run, and the environment."""

    folder: Path
    environment: dict[str, str]

    def run(self, *program: str, given: str = "") -> str:
        """What a program prints."""
        done = subprocess.run(
            program, cwd=self.folder, env=self.environment, input=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def place(folder: Path, packages: list[Path], programs: Path) -> Place:
    """A folder with these packages, and with the command `sdjax`."""
    command = folder / "bin" / "sdjax"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipelines.cli "$@"\n', "utf-8")
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, packages)),
        "PYTHONSAFEPATH": "1",
        "SDJAX_CACHE": str(programs),
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return Place(folder, environment)


@pytest.fixture(scope="module")
def printed(installed: Path, changed: Path, compiled_programs: Path, tmp_path_factory: Any) -> dict[str, str]:
    """What the blocks of Python print, by their section."""
    found = {}
    for mark, base in ((_RUN, ROOT), (_RUN_CHANGED, changed)):
        blocks = [block for block in RUNS if (block.mark, block.language) == (mark, "python")]
        where = place(tmp_path_factory.mktemp("run"), [installed, base], compiled_programs)
        texts = json.loads(
            where.run(sys.executable, "-c", _ONE_BY_ONE, given=json.dumps([each.code for each in blocks]))
        )
        found |= {block.section: text for block, text in zip(blocks, texts, strict=True)}
    return found


@pytest.mark.parametrize(
    "block", [block for block in RUNS if block.language == "python"], ids=lambda block: block.section
)
def test_each_example_in_python_prints_what_the_page_says(block, printed):
    assert printed[block.section] == block.printed


@pytest.mark.parametrize("block", [block for block in RUNS if block.language == "sh"], ids=lambda block: block.section)
def test_each_example_on_the_command_line_prints_what_the_page_says(
    block, installed, changed, compiled_programs, tmp_path
):
    where = place(tmp_path, [installed, changed if block.mark == _RUN_CHANGED else ROOT], compiled_programs)
    assert where.run("sh", "-eu", "-c", block.code) == block.printed


def test_each_row_of_the_table_has_a_section_that_is_run():
    named = re.findall(r"^\| \[[\w ]+\]\(#([\w-]+)\)", PAGE, re.MULTILINE)
    assert len(named) == 8
    assert {block.section.lower().replace(" ", "-") for block in RUNS} == set(named)
