"""What is printed: texts of strangers' files are shown, and never obeyed by the terminal."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines import terminal

PIPELINES = Path(terminal.__file__).parent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\rb\nc\td\0", r"a\rb\nc\td\x00"),
        ("eight bits: \x9b31m \x7f", r"eight bits: \x9b31m \x7f"),
        ("gnp\u202ecod.exe\u2066\u061c", r"gnp\u202ecod.exe\u2066\u061c"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("name\udcff.png", r"name\udcff.png"),
        ("漢字 \u200cपद 👩\u200d🚀 C:\\x [red] :cat:", "漢字 \u200cपद 👩\u200d🚀 C:\\x [red] :cat:"),
    ],
)
def test_what_would_do_something_else_than_be_shown_is_an_escape(text, shown):
    assert terminal.visible(text) == shown


def test_lines_of_an_error_can_not_pose_as_lines_of_ours(capsys):
    terminal.error("a[red] :cat: \\[b]\x1b[2J\nerror: all is well\u2028x")
    assert capsys.readouterr().err == "error: a[red] :cat: \\[b]\\x1b[2J\n  error: all is well\\u2028x\n"


def test_a_line_and_a_note_are_shown_as_they_are(capsys):
    terminal.line("a [b]\x1b]0;title\x07")
    terminal.note(":cat: [red]\x9b")
    shown = capsys.readouterr()
    assert shown.out == "a [b]\\x1b]0;title\\x07\n" and shown.err == ":cat: [red]\\x9b\n"


def test_what_libraries_log_warn_of_and_break_with_is_shown_likewise():
    program = """
        import logging, threading, warnings
        from pipelines import terminal

        def breaks():
            raise ValueError("break\\x1b[31m")

        terminal.use()
        logging.error("log\\x1b[31m")
        warnings.warn("warn\\x1b[31m")
        thread = threading.Thread(target=breaks)
        thread.start()
        thread.join()
        print("\\u732b")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={"PYTHONPATH": str(PIPELINES.parent), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in done.stderr and done.stdout == "\\u732b\n"
    assert all(f"{word}\\x1b[31m" in done.stderr for word in ("log", "warn", "break"))


def calls(path: Path) -> set[str]:
    """The names of all that a module calls."""
    nodes = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    return {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in nodes}


def test_all_goes_through_one_place():
    """The bar draws itself, of texts that it makes visible."""
    printing = {path.name for path in PIPELINES.rglob("*.py") if calls(path) & {"print", "Console"}}
    assert printing == {"terminal.py", "progress.py"}
