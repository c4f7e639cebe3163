"""`sdjax fields`."""

import functools
from typing import Annotated

from typer import Option

from pipelines import terminal
from pipelines.cli.command import Command


def fields(
    as_json: Annotated[bool, Option("--json", help="the JSON Schema of a row of a prompt file instead")] = False,
) -> Command:
    """The fields of a job: what a row of a prompt file may hold."""
    return functools.partial(run, as_json)


def run(as_json: bool) -> int:
    """Prints each with its values, its default and its meaning, or the schema of a row."""
    import json

    from pipelines.sources.sweeps import ROW_KEYS
    from sdjax.jobs import schema

    if as_json:
        terminal.text(json.dumps(schema.json_schema(ROW_KEYS), indent=2) + "\n")
        return 0
    for row in schema.field_table():
        terminal.line(row.name)
        terminal.line(f"    {row.values}; default: {row.default}")
        terminal.line(f"    {row.doc}")
    return 0
