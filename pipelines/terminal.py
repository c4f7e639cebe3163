"""All that is printed. Texts come out of strangers' files, and a terminal obeys what it is sent.

Control characters (also those of eight bits), marks that turn the direction of writing, separators of lines and
halves of surrogate pairs are therefore printed as escapes: `\\x1b`, `\\u202e`. Nothing is read as markup.
"""

import contextlib
import io
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipelines import stopping

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# What else turns letters around, or is a control character of eight bits. It is what is escaped in files
# (`sdjax.storage.jsonl`; a test compares them), and is not imported from there: that takes seconds, which no error in
# arguments should wait for.
TERMINAL_CONTROLS = r"\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
# Joiners (U+200C, U+200D) stay: Persian words and emoji are written with them.
_HIDDEN = re.compile(rf"[\0-\x1f\u2028\u2029\ud800-\udfff{TERMINAL_CONTROLS}]")


def visible(text: str) -> str:
    """The text on one line, with an escape for each character that would do something else than be printed."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def visible_lines(text: str) -> str:
    """The same of a text of several lines; all but the first are moved in, so that none can pose as another's."""
    return "\n  ".join(map(visible, text.rstrip("\n").split("\n")))


def line(text: str) -> None:
    """Prints a line on standard output.

    Raises:
      ReaderGone: if nobody reads it any more.
      OSError: if there is no room for it.
    """
    with _to_reader():
        print(visible(text))


def text(own: str) -> None:
    """Prints what this package itself wrote, as it is: help, and what completes a line in a shell."""
    with _to_reader():
        sys.stdout.write(own)


def flush() -> None:
    """Waits until all lines are with their reader; errors are those of `line`."""
    with _to_reader():
        sys.stdout.flush()


@contextlib.contextmanager
def _to_reader() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _drop_lines()
        raise stopping.ReaderGone from None
    except OSError as problem:
        _drop_lines()
        raise OSError(f"standard output: {problem.strerror}") from problem


def _drop_lines() -> None:
    """Lets go what nobody took, which Python would offer again."""
    if (own := sys.__stdout__) and sys.stdout is own:
        os.dup2(os.open(os.devnull, os.O_WRONLY), own.fileno())


def console() -> "Console":
    """Standard error, for what is drawn; when its reader goes, the command ends."""
    from rich.console import Console

    class Errors(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            stopping.reader_gone()

    return Errors(stderr=True)


def progress() -> "Progress":
    """A bar on standard error, for tasks whose descriptions are this package's own."""
    from rich.progress import Progress

    return Progress(console=console())


def error(text: str) -> None:
    """Says on standard error why a command fails."""
    from rich.text import Text

    console().print(Text.assemble(("error:", "red"), " ", visible_lines(text)), soft_wrap=True)


def note(text: str) -> None:
    """Says on standard error what a user should know."""
    from rich.text import Text

    console().print(Text(visible_lines(text)), soft_wrap=True)


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


def use() -> None:
    """Lets what libraries log, warn of and break with come out like our own."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    format_warning = warnings.formatwarning
    warnings.formatwarning = lambda *of: visible_lines(format_warning(*of)) + "\n"
    threading.excepthook = lambda failed: crash(failed.exc_value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a prompt may have letters that the terminal has not


def crash(problem: BaseException | None) -> None:
    """Says on standard error where a bug is."""
    text = "".join(traceback.format_exception(problem))
    with contextlib.suppress(OSError):
        sys.stderr.write(visible_lines(text) + "\n")
