"""`sdjax fields`."""

import functools
from typing import Annotated

from typer import Option

from pipelines import terminal
from pipelines.cli.command import Command


def fields(
    as_json: Annotated[bool, Option("--json", help="the JSON Schema of a row instead")] = False,
) -> Command:
    """The fields of a job: what a row of a prompt file may hold."""
    return functools.partial(run, as_json)


def run(as_json: bool) -> int:
    """Prints their table, or their schema."""
    import json

    from sdjax.jobs import schema  # type: ignore[attr-defined]

    text = json.dumps(schema.json_schema(), indent=2) if as_json else schema.field_table()
    for line in text.splitlines():
        terminal.line(line)
    return 0
