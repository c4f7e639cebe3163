"""JSON lines: an object a line, in readable text of any script."""

import functools
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sdjax.storage.errors import StorageError

# Of a line that is read: several times what a run writes for two prompts of the greatest length, all escaped.
MAX_LINE_BYTES = 16 * 2**20

# What JSON leaves as it is and a terminal obeys: control characters of eight bits, and marks that turn the direction of
# writing. They are escaped: who looks at a file in a terminal sends it there.
TERMINAL_CONTROLS = r"\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_TERMINAL_CONTROL = re.compile(f"[{TERMINAL_CONTROLS}]")


def jsonl_line(row: Mapping[str, Any]) -> bytes:
    """The line of an object; raises `ValueError` for NaN or infinity."""
    text = json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair is no UTF-8; with a backslash it is JSON's own escape.
    return _TERMINAL_CONTROL.sub(_escape, text).encode("utf-8", "backslashreplace") + b"\n"


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def read_lines(stream: io.BufferedIOBase, path: str) -> Iterator[dict[str, Any]]:
    """The objects of a stream with one a line, streaming.

    Raises:
      StorageError: names the line of `path` that is no whole object.
    """
    for number, line in enumerate(iter(functools.partial(stream.readline, MAX_LINE_BYTES), b""), 1):
        if len(line) == MAX_LINE_BYTES:
            raise StorageError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes; no run writes such")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{path}, line {number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise StorageError(f"{path}, line {number}: a {type(row).__name__}; expected an object")
        yield row
