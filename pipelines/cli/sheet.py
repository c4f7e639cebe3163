"""`sdjax sheet OUT`."""

import functools
from typing import Annotated

from typer import Option

from pipelines import terminal
from pipelines.cli.command import Command, Out, note_letters


def sheet(
    out: Out,
    file: Annotated[
        str | None, Option(metavar="FILE", help="where to write it, as PNG (default: OUT/sheet.png)")
    ] = None,
    columns: Annotated[int, Option(metavar="N", help="images in a row")] = 8,
    limit: Annotated[int, Option(metavar="N", help="images at most")] = 200,
) -> Command:
    """A contact sheet of an output."""
    return functools.partial(run, out, file, columns, limit)


def run(out: str, file: str | None, columns: int, limit: int) -> int:
    """Draws it, and prints how many images are on it."""
    from pipelines import sheet
    from sdjax import storage

    target = file or storage.join(out, "sheet.png")
    count, unreadable = sheet.write(out, target, columns=columns, limit=limit)
    terminal.line(f"{count} images in {target}")
    note_letters(unreadable)
    return 0
