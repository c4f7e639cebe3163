"""Arguments -> a command: nothing runs while they are read, and what is wrong with them is one line."""

import functools
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import typer

from pipelines import cli
from pipelines.cli import app, convert, generate, verify
from sdjax.diffusion.scheduler_config import PREDICTION_TYPES

ROOT = Path(__file__).parents[3]
NAMES = tuple(typer.main.get_group(app.app).commands)
HEAVY = ("jax", "flax", "numpy", "apache_beam", "pyarrow", "transformers")


def command(*arguments: str) -> functools.partial[int]:
    found = app.parsed(arguments)
    assert isinstance(found, functools.partial)
    return found


def in_a_process(program: str, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_arguments_are_read_and_nothing_runs():
    settings = ("--set", "steps=3", "--set", "model.dtype=bfloat16", "--sweep", "seed=1..3", "--repeat", "2")
    found = command("generate", "a.txt", "b.csv", "out", "--model", "here", *settings, "--", "--direct_num_workers=2")
    assert found.func is generate.run
    assert found.args == (
        generate.Options(
            prompts=["a.txt", "b.csv"],
            out="out",
            config=None,
            settings=["steps=3", "model.dtype=bfloat16"],
            keys={"model.name": "here", "run.repeat": 2},
            sweeps=["seed=1..3"],
            flags=("--direct_num_workers=2",),
            quiet=False,
        ),
    )
    assert command("verify", "out").args == (verify.Options("out", 1.0, None, (), False, False),)


def test_names_of_files_may_be_no_text():
    assert command("inspect", "\udcff [x].png").args == ("\udcff [x].png", False)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "Missing command; sdjax --help"),
        (("paint",), "No such command 'paint'; sdjax --help"),
        (("generat", "a", "b"), "Did you mean 'generate'"),
        (("generate", "only.txt"), "Missing argument"),
        (("sheet",), "Missing argument 'OUT'; sdjax sheet --help"),
        (("sheet", "out", "--columns", "many"), "'--columns'"),
        (("verify", "out", "--sample", "nan"), "'--sample'"),
        (("verify", "out", "--smaple", "1"), "--smaple"),
        (("convert", "a", "b", "--prediction-type", "x"), "'--prediction-type'"),
        (("depth", "images", "maps"), "'--model'"),
        (("env", "more\x1b[31m\u202e"), r"more\x1b[31m\u202e"),
        (("sheet", "out", "--", "--direct_num_workers=2"), "only generate takes Beam's flags"),
    ],
)
def test_bad_usage_is_one_line_that_names_the_command(capsys, arguments, words):
    assert app.parsed(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert words in printed.err and " --help says how it is used" in printed.err


@pytest.mark.parametrize("name", NAMES)
def test_every_command_says_how_it_is_used(capsys, name):
    assert app.parsed([name, "--help"]) == app.parsed([name, "-h"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(f"Usage: sdjax {name}") == 2 and printed.err == ""
    assert "\x1b" not in printed.out


def test_readme_and_the_package_have_the_same_commands():
    rows = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("| `sdjax ")]
    assert sorted(row.split("`")[1].split()[1] for row in rows) == sorted(NAMES)
    assert all((Path(cli.__file__).parent / f"{name}.py").is_file() for name in NAMES)


def test_help_and_completion_import_nothing_heavy():
    program = f"""
import sys
from pipelines import cli
assert cli.main(["generate", "--help"]) == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert in_a_process(program).endswith("[]\n")
    completing = {"_SDJAX_COMPLETE": "complete_bash", "COMP_WORDS": "sdjax ge", "COMP_CWORD": "1"}
    program = f"""
import sys
from pipelines import cli
assert cli.main([]) == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert in_a_process(program, **completing).split("\n")[:2] == ["generate", "[]"]


def test_what_a_shell_needs_for_completion_is_printed(capsys, monkeypatch):
    monkeypatch.setenv("_SDJAX_COMPLETE", "source_bash")
    assert app.parsed([]) == 0
    assert "complete_bash" in capsys.readouterr().out


def test_choices_of_options_are_those_of_the_library():
    hint = typing.get_type_hints(convert.convert)["prediction_type"]
    literal = next(each for each in typing.get_args(hint) if typing.get_origin(each) is typing.Literal)
    assert typing.get_args(literal) == PREDICTION_TYPES
