"""The fields of a job for others: as a JSON Schema of a row of a prompt file, and as a table."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sdjax import extensions
from sdjax.jobs.fields import REQUIRED, Field
from sdjax.jobs.job import FIELDS
from sdjax.jobs.rules import either
from sdjax.jobs.text_values import TRUTHS

Schema = dict[str, Any]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TITLE = "A row of a prompt file of sdjax"
_DESCRIPTION = (
    "One object of a .jsonl file. A list stands for as many rows, and so does a text of numbers such as 1..100 or "
    "4, 5, 7..9. Names are read in any case and with blanks for underscores, too, which this schema does not say."
)
# Numbers as text: `1..100`, `4..8..0.5`, `1, 4, 7..9`.
_NUMBERS = r"^[-+0-9.eE,\s]+$"
# A1111's API counts clip skip from 1.
_FROM_ONE = 1


def json_schema(more: Mapping[str, Sequence[str]] | None = None) -> Schema:
    """A JSON Schema (draft 2020-12) of a row, with the names of other tools.

    A row that it takes has known columns, values of their types and ranges, and what each field needs beside it. It
    knows fewer spellings than the reader does, and wants what a field needs also where that is at its default.

    Args:
      more: keys that a row may have besides, and the texts that each can be.
    """
    properties: Schema = {}
    dependent: dict[str, list[str]] = {}
    either_of: Schema = {}
    for field in FIELDS.values():
        properties |= _properties(field)
        for name in _names(field):
            partners = [each for need in field.needs for each in _names(FIELDS[need])]
            if len(partners) == 1:
                dependent[name] = partners
            elif partners:
                either_of[name] = {"anyOf": [{"required": [each]} for each in partners]}
    properties |= {name: {"enum": [*known, None]} for name, known in (more or {}).items()}
    return {
        "$schema": _DRAFT,
        "title": _TITLE,
        "description": _DESCRIPTION,
        "type": "object",
        "properties": properties,
        "required": [field.name for field in FIELDS.values() if field.default is REQUIRED],
        "additionalProperties": False,
        "dependentRequired": dependent,
        "dependentSchemas": either_of,
    }


def _names(field: Field) -> tuple[str, ...]:
    return field.name, *field.aliases, *field.aliases_from_one


def _properties(field: Field) -> Schema:
    """The schemas of a field by all its names."""
    found: Schema = {field.name: _property(field, field.doc)}
    for alias in field.aliases:
        found[alias] = {"description": f"The same as `{field.name}`.", "$ref": f"#/properties/{field.name}"}
    if field.within and field.aliases_from_one:
        least, most = field.within
        moved = field._replace(within=(least + _FROM_ONE, most + _FROM_ONE), default=field.default + _FROM_ONE)
        for alias in field.aliases_from_one:
            found[alias] = _property(moved, f"`{field.name}`, counted from 1.")
    return found


def _property(field: Field, doc: str) -> Schema:
    values = _values(field)
    blank = [] if field.default is REQUIRED else [{"type": "null"}]
    several = {"type": "array", "items": {"anyOf": values}, "minItems": 1}
    default = {} if field.default in (REQUIRED, None) else {"default": field.default}
    return {"description": doc, **default, "anyOf": [*values, *blank, several]}


def _values(field: Field) -> list[Schema]:
    """The schemas of one of a field's values, of which it has to have one."""
    if field.kind is bool:
        return [{"type": "boolean"}, {"enum": list(TRUTHS)}]
    if field.kind is not str:
        return [_number(field), {"type": "string", "pattern": _NUMBERS}]
    if known := _known(field):
        return [{"enum": [*known, *(int(each) for each in known if each.isdigit())]}, _joined(known)]
    return [{"type": "string"} | ({} if field.longest is None else {"maxLength": field.longest})]


def _number(field: Field) -> Schema:
    limits = {} if field.within is None else dict(zip(("minimum", "maximum"), field.within, strict=True))
    return {"type": "integer" if field.kind is int else "number", **limits}


def _known(field: Field) -> tuple[str, ...]:
    added = extensions.names(field.extended_by) if field.extended_by else ()
    if not field.choices:
        return (*field.known, *added)
    labels = (field.labels[choice] for choice in field.choices if choice in field.labels)
    return tuple(dict.fromkeys((*field.choices, *added, *labels, *field.spellings)))


def _joined(known: Iterable[str]) -> Schema:
    """Some of the texts that are known, with commas between."""
    one = f"(?:{'|'.join(map(re.escape, known))})"
    return {"type": "string", "pattern": rf"^{one}(?:\s*,\s*{one})+$"}


class TableRow(NamedTuple):
    """A field as docs have it, in Markdown.

    values: what it can be.
    default: what it is, or what becomes of it, where it is not given.
    doc: what it does, what it needs, and its other names.
    """

    name: str
    values: str
    default: str
    doc: str


def field_table(fields: Iterable[str] = FIELDS) -> list[TableRow]:
    """The table of fields, for people to read."""
    return [
        TableRow(field.name, _values_text(field), _default_text(field), _doc_text(field))
        for field in (FIELDS[name] for name in fields)
    ]


def _values_text(field: Field) -> str:
    if field.values:
        return field.values
    if field.kind is bool:
        return "`true`, `false`"
    if field.within is not None:
        return " to ".join(map(_limit_text, field.within))
    return ", ".join(f"`{each}`" for each in field.choices) or "text"


def _limit_text(limit: float) -> str:
    """2^64 - 1 as such, 1000000 without an exponent, 0.001 as it is."""
    number = int(limit)
    if number != limit:
        return f"{limit:g}"
    bits = number.bit_length()
    return f"2^{bits} - 1" if bits > 16 and number + 1 == 1 << bits else str(number)


def _default_text(field: Field) -> str:
    if field.default is REQUIRED:
        return "must be given"
    if field.default in (None, ""):
        return field.unset
    if isinstance(field.default, bool | str):
        return f"`{str(field.default).lower()}`"
    return f"{field.default:g}"


def _doc_text(field: Field) -> str:
    needs = f" It needs {either(tuple(f'`{each}`' for each in field.needs))}." if field.needs else ""
    others = (*map("`{}`".format, field.aliases), *map("`{}` (counted from 1)".format, field.aliases_from_one))
    also = f" Also read as {either(others)}." if others else ""
    return f"{field.doc}{needs}{also}"
