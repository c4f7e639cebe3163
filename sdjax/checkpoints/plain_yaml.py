"""YAML as configs need it: mappings, lists and plain values, bounded, from files that anyone may have written.

Values are those of YAML 1.2's core schema, on which tools agree. What YAML 1.1 alone takes for something else is text
(`no`, `1:30:00`, `2024-01-01`), and what the two read as different numbers (`010`, `1_000`) is an error, as are
aliases, tags, keys that are there twice, and more than one document.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sdjax.messages import quoted

# Of a file; published configs have 5 kB.
MOST_BYTES = 1 << 16
# Mappings and lists within each other; published configs have 7.
MOST_LEVELS = 32
# Letters of a number; the longest float64 that Python writes has 24.
_MOST_LETTERS = 64

_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE, _FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
# 8 or 10, 1000 or a text, by the version.
_AMBIGUOUS = re.compile(r"[-+]?(?:0[0-9_]+|[0-9]+_[0-9_]*(?:\.[0-9_]*)?|0b[01_]+|0x[0-9a-fA-F]*_[0-9a-fA-F_]*)")
# Which no text of a config needs: control characters and halves of surrogate pairs.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class PlainYamlError(ValueError):
    """What is no plain YAML; the message says where in the text and what is expected, but not the file's name."""


def read_plain_yaml(file: Path) -> Any:
    """The value of a file, read no further than `MOST_BYTES`.

    Raises:
      PlainYamlError: see `parse_plain_yaml`.
      OSError: if it can't be read.
    """
    with file.open("rb") as opened:
        return parse_plain_yaml(opened.read(MOST_BYTES + 1))


def parse_plain_yaml(text: str | bytes) -> Any:
    """The value of a text: None, a truth, a number, a text, or a list or dict (with texts as keys) of such.

    Raises:
      PlainYamlError: if it isn't UTF-8 or YAML, has more than `MOST_BYTES` or `MOST_LEVELS`, or what this module's
        docstring refuses.
    """
    if len(text) > MOST_BYTES:
        raise PlainYamlError(f"more than {MOST_BYTES} bytes, far beyond any config; is it another file?")
    if isinstance(text, bytes):
        text = _decoded(text)
    try:
        return _document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.reader.ReaderError as error:
        raise PlainYamlError(
            f"line {text.count(chr(10), 0, error.position) + 1}: {_strange(error.character)}"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(each for each in (error.context, error.problem) if each)
        raise PlainYamlError(f"{_place(mark)}: not valid YAML: {said[:200]}") from None
    except PlainYamlError:
        raise
    except (ValueError, OverflowError) as error:  # \UFFFFFFFF
        raise PlainYamlError(f"an escape that stands for no character: {error}") from None


def _decoded(data: bytes) -> str:
    if mark := _MARKS.get(data[:2]):
        raise PlainYamlError(f"the text is {mark}; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PlainYamlError(f"line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save it so") from None


def _document(events: Iterator[Any]) -> Any:
    value, found = None, False
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if found:
                raise PlainYamlError(f"{_place(event.start_mark)}: a second document; expected one")
            value, found = _node(next(events), events, 0), True
    return value


def _node(event: Any, events: Iterator[Any], level: int) -> Any:
    _check_node(event, level)
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        found = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            found.append(_node(event, events, level + 1))
        return found
    return _mapping(events, level + 1)


def _check_node(event: Any, level: int) -> None:
    place = _place(event.start_mark)
    if isinstance(event, yaml.AliasEvent):
        raise PlainYamlError(f"{place}: an alias, *{quoted(event.anchor)}; write out what it stands for")
    if event.tag is not None:
        raise PlainYamlError(f"{place}: a tag, {quoted(event.tag)}; take it away (quotes make any value a text)")
    if level >= MOST_LEVELS:
        raise PlainYamlError(f"{place}: nested more than {MOST_LEVELS} deep; is a bracket not closed?")


def _mapping(events: Iterator[Any], level: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key, place = _node(event, events, level), _place(event.start_mark)
        if not isinstance(key, str):
            raise PlainYamlError(f"{place}: the key {quoted(key)}; expected a text (quotes make any value one)")
        if key == "<<":
            raise PlainYamlError(f"{place}: a merge key, <<; write its keys out")
        if key in found:
            raise PlainYamlError(f"{place}: the key {quoted(key)} is there twice; keep one")
        found[key] = _node(next(events), events, level)
    return found


def _scalar(event: yaml.ScalarEvent) -> Any:
    text, place = event.value, _place(event.start_mark)
    if strange := _NO_TEXT.search(text):
        raise PlainYamlError(
            f"{place}: the character U+{ord(strange[0]):04X}, which no text of a config holds; remove it"
        )
    return _resolved(text, place) if event.implicit[0] else text


def _resolved(text: str, place: str) -> Any:
    """The value of a text without quotes."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return _TRUE.fullmatch(text) is not None
    if _AMBIGUOUS.fullmatch(text):
        raise PlainYamlError(
            f"{place}: {quoted(text)} is one number or another, or a text, by YAML's version; write a decimal number "
            "without zeros before it and without _, or put quotes around it"
        )
    whole, real = _INTEGER.fullmatch(text), _FLOAT.fullmatch(text)
    if not whole and not real:
        return text
    if len(text) > _MOST_LETTERS:
        raise PlainYamlError(f"{place}: a number of {len(text)} letters, {quoted(text)}; expected a shorter one")
    if whole:
        return int(text, 0)
    number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(number) and "inf" not in text.lower():
        raise PlainYamlError(f"{place}: {quoted(text)} is beyond any number; quotes make it a text")
    return number


def _strange(character: int) -> str:
    return f"the character U+{character:04X}, which no text of a config holds; remove it"


def _place(mark: Any) -> str:
    return "the text" if mark is None else f"line {mark.line + 1}"
