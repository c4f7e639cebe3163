"""All keys of the configuration as Markdown, which `make docs` writes into docs/configuration.md."""

import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.config.keys import Key
from pipelines.config.sections import SECTIONS

# What is around them in the page.
BEGIN, END = "<!-- keys -->\n\n", "\n<!-- end of keys -->"


def key_tables() -> str:
    """A heading and a table of keys for each section."""
    return "\n".join(line for section in SECTIONS for line in _section(section))


def _section(section: str) -> Iterator[str]:
    of = SECTIONS[section]
    yield f"### `{section}:`\n"
    yield f"{of.__doc__}\n"
    yield "| key | values | default | meaning |"
    yield "|---|---|---|---|"
    yield from (_row(f"{section}.{name}", key) for name, key in of.keys().items())
    yield ""


def _row(name: str, key: Key) -> str:
    return f"| `{name}` | {key.kind.expected} | {_default(key.default)} | {key.doc} |"


def _default(value: object) -> str:
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _write(page: Path) -> None:
    """Puts the tables into a page, between its marks."""
    head, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    page.write_text(f"{head}{begin}{key_tables()}{end}{tail}", "utf-8")


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
