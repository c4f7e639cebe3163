"""Writes the tables of fields into Markdown files, between `<!-- fields: ... -->` and `<!-- end of fields -->`.

    python -m sdjax.jobs.field_docs README.md docs/*.md

What stands behind `fields:` are names of fields and of groups of fields, in the order of the table.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from sdjax.jobs.job import FIELDS
from sdjax.jobs.schema import field_table

_TABLE = re.compile(r"(<!-- fields: ([\w, ]+) -->\n).*?(<!-- end of fields -->)", re.DOTALL)
_HEAD = "| field | values | default | what it does |\n|---|---|---|---|\n"


def with_tables(text: str) -> str:
    """A Markdown text with its tables of fields as they are now.

    Raises:
      ValueError: for a name that is neither a field nor a group.
    """
    return _TABLE.sub(lambda found: f"{found[1]}\n{markdown_table(found[2].split(','))}\n{found[3]}", text)


def markdown_table(names: Iterable[str]) -> str:
    """The table of the fields and groups of these names; raises as `with_tables`."""
    rows = field_table(field for name in names for field in _fields(name.strip()))
    return _HEAD + "".join(f"| `{row.name}` | {row.values} | {row.default} | {row.doc} |\n" for row in rows)


def _fields(name: str) -> Iterator[str]:
    found = [field.name for field in FIELDS.values() if name in (field.name, field.group)]
    if not found:
        groups = dict.fromkeys(field.group for field in FIELDS.values())
        raise ValueError(f"{name!r} is neither a field nor one of the groups {', '.join(groups)}")
    yield from found


def write(paths: Iterable[Path]) -> None:
    """Writes the tables of files."""
    for path in paths:
        path.write_text(with_tables(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    write(map(Path, sys.argv[1:]))
