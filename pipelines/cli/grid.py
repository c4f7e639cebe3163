"""`sdjax grid OUT --x FIELD --y FIELD --z FIELD`."""

import functools
from collections.abc import Sequence
from typing import Annotated

from typer import Option

from pipelines import terminal
from pipelines.cli.command import Command, Out, note_letters


def grid(
    out: Out,
    x: Annotated[str, Option(metavar="FIELD", help="along the columns: steps, or steps=5,20", show_default=False)] = "",
    y: Annotated[
        str, Option(metavar="FIELD", help="along the rows: sampler, or sampler=euler,ddim", show_default=False)
    ] = "",
    z: Annotated[str, Option(metavar="FIELD", help="from block to block", show_default=False)] = "",
    where: Annotated[
        list[str] | None, Option(metavar="KEY=VALUE", help="only these images (may be given several times)")
    ] = None,
    file: Annotated[
        str | None, Option(metavar="FILE", help="where to write it, as PNG (default: OUT/grid.png)")
    ] = None,
) -> Command:
    """A comparison sheet of an output, by the values of fields."""
    return functools.partial(run, out, (x, y, z), where or (), file)


def run(out: str, fields: tuple[str, str, str], where: Sequence[str], file: str | None) -> int:
    """Draws it, and prints how many images are on it, and how many places are empty."""
    from pipelines import grid
    from sdjax import storage

    target = file or storage.join(out, "grid.png")
    axes = grid.Axes(*map(grid.read_axis, fields))
    count, empty, unreadable = grid.write(out, target, axes, grid.read_where(where))
    terminal.line(f"{count} images in {target}" + (f", {empty} places empty" if empty else ""))
    note_letters(unreadable)
    return 0
