"""JSON of a checkpoint, read in one way: a file of bounded size and nesting, each key once."""

import json
from pathlib import Path
from typing import Any

from sdjax.checkpoints.stored_tensor import CheckpointError
from sdjax.messages import quoted

# Far above any published file, which are said behind.
MOST_CONFIG_BYTES = 1 << 20  # 12 kB, with the labels of a thousand classes 60 kB
MOST_INDEX_BYTES = 1 << 24  # 200 kB
MOST_NESTING = 32  # 4


def read_json(file: Path, most_bytes: int = MOST_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      CheckpointError: if it is none, is not there, or is too large or too deep; it names the file.
    """
    if not file.exists():
        raise CheckpointError(f"{file} is missing; is {file.parent} a whole diffusers folder?")
    if not file.is_file():
        raise CheckpointError(f"{file} is no file; expected JSON")
    try:
        with file.open("rb") as opened:
            text = opened.read(most_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{file} can't be read ({error})") from error
    return parse_json(text, str(file), most_bytes)


def parse_json(text: bytes, where: str, most_bytes: int = MOST_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from its text; raises `CheckpointError` that begins with `where`."""
    if len(text) > most_bytes:
        raise CheckpointError(f"{where} has more than {most_bytes} bytes; expected a config of some thousands")
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise CheckpointError(f"{where} is nested deeper than {MOST_NESTING}; expected a config") from error
    except ValueError as error:
        raise CheckpointError(f"{where} is not JSON ({quoted(str(error))})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} holds {type(data).__name__}, not an object")
    if _is_deeper(data, MOST_NESTING):
        raise CheckpointError(f"{where} is nested deeper than {MOST_NESTING}; expected a config")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {quoted(name)} stands there twice")
        found[name] = value
    return found


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper; without recursion."""
    level = [value]
    for _ in range(depth):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    return bool(level)
