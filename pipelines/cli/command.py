"""What commands share: arguments -> something to run, and how some of its results are said."""

from collections.abc import Callable, Iterable
from typing import Annotated

from typer import Argument, Option

from pipelines import terminal

# A command with its arguments; gives the exit status. What takes time to import it imports itself.
Command = Callable[[], int]

# Arguments of several commands.
Out = Annotated[str, Argument(metavar="OUT", help="an output of generate", show_default=False)]
Pickled = Annotated[bool, Option("--pickled", help="allow pickled files (.ckpt, .pt, .bin)")]

_NAME_WIDTH = 21
# Of letters that no font has, so many are listed.
_SHOWN_LETTERS = 40


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Prints names and values, a line each."""
    for name, value in facts:
        terminal.line(f"{name:<{_NAME_WIDTH}} {value}")


def note_letters(letters: str) -> None:
    """Names letters that no font of this machine has."""
    if letters:
        listed = letters[:_SHOWN_LETTERS] + ("…" if len(letters) > _SHOWN_LETTERS else "")
        terminal.line(f"note: no font here has {listed}: install one that does (fontconfig finds it) and draw it again")
