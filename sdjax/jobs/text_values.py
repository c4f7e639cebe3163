"""Fields of jobs as files and command lines have them: under the names of other tools too, and with values as text."""

import contextlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdjax.jobs.fields import REQUIRED, Field, JobError
from sdjax.jobs.job import FIELDS, Job, check
from sdjax.messages import near_match, quoted

# Unknown columns that an error names.
_MOST_UNKNOWN = 5
# Up to here a float holds each whole number.
_EXACT = 2**53

# Names of fields in other tools -> the field.
ALIASES: Mapping[str, str] = {alias: name for name, field in FIELDS.items() for alias in field.aliases}
# Likewise, in tools that count from 1 what is counted from 0 here.
ALIASES_FROM_ONE: Mapping[str, str] = {
    alias: name for name, field in FIELDS.items() for alias in field.aliases_from_one
}
# Fields whose choices A1111's API has as numbers.
_NUMBERED = frozenset(
    name for name, field in FIELDS.items() if any(each.isdigit() for each in (*field.spellings, *field.refused))
)
# Words of tables for yes and no.
TRUTHS = dict.fromkeys(("true", "yes", "1", "on"), True) | dict.fromkeys(("false", "no", "0", "off"), False)


def filled_in(given: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """What a row gives, and what the run gives for the rest; but not what would have nothing to act on in this row.

    So one `strength` for a whole run leaves rows without an `image` as they are.
    """
    whole = {**run, **given}

    def is_idle(name: str) -> bool:
        field = FIELDS.get(name)
        return field is not None and field.idle and not any(_is_set(whole, need) for need in field.needs)

    while idle := [name for name in whole if name not in given and is_idle(name)]:
        for name in idle:
            del whole[name]
    return whole


def _is_set(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    is_off = FIELDS[name].kind is bool and TRUTHS.get(str(value).strip().lower()) is False
    return value is not None and not is_off


# --- Names of fields ---


def field_named(name: str) -> str:
    """The field that a column or key means, by the names of other tools too; the name itself if none.

    Names of tools that count from 1 are not among these: see `with_fields_named`.
    """
    if name in FIELDS:
        return name
    if _from_one(name):
        return str(name)
    plain = str(name).strip().lower().replace(" ", "_")
    return plain if plain in FIELDS else ALIASES.get(plain, name)


def _from_one(name: Any) -> str | None:
    """The field that a name means in a tool that counts from 1."""
    return ALIASES_FROM_ONE.get(str(name).strip().lower())


def with_fields_named(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row under the names of our fields.

    Raises:
      JobError: if two columns mean one field.
    """
    named: dict[str, Any] = {}
    for name, value in row.items():
        field = field_named(name)
        if field not in FIELDS and (counted := _from_one(name)):
            field, value = counted, _counted_from_zero(counted, value)
        if field in named:
            raise JobError(f"{quoted(name)} and another column both mean {field}; keep one")
        named[field] = value
    return named


def _counted_from_zero(field: str, value: Any) -> Any:
    """The value of a field that another tool counts from 1."""
    if isinstance(value, list | tuple):
        return [_counted_from_zero(field, each) for each in value]
    name = FIELDS[field].aliases_from_one[0]
    if isinstance(value, str) and re.search(r",|\.\.", value):
        raise JobError(f"{name} = {quoted(value)}: give several values in {field}, each less by one")
    if _is_blank(value):
        return value
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        _, most = FIELDS[field].within or (0, 0)
        raise JobError(
            f"{name} = {quoted(value)}: expected a whole number from 1 (nothing left out) to {int(most) + 1}"
        )
    return count - 1


def unknown_fields(columns: Iterable[str]) -> str | None:
    """Says which names are no fields of a job, with near matches; None if all are."""
    unknown = [name for name in columns if name not in FIELDS and not _is_known(name)]
    if not unknown:
        return None
    known = (*FIELDS, *ALIASES, *ALIASES_FROM_ONE)
    hints = [f"{quoted(name)}{near_match(str(name), known)}" for name in itertools.islice(unknown, _MOST_UNKNOWN)]
    more = len(unknown) - len(hints)
    others = f" and {more} more" if more else ""
    return f"unknown column {', '.join(hints)}{others}; known: {', '.join(FIELDS)}"


def _is_known(name: str) -> bool:
    return field_named(name) in FIELDS or _from_one(name) is not None


def is_number(name: str) -> bool:
    """Whether a field, by any of its names, is a number."""
    field = FIELDS.get(field_named(name))
    return field is not None and field.kind in (int, float)


def is_whole_number(name: str) -> bool:
    """Whether a field's numbers are whole."""
    return FIELDS[name].kind is int


# --- Values ---


def job_from_text(row: Mapping[str, Any]) -> Job:
    """Makes a job from a row of a file, whose values may be text; an empty text is a value not given.

    An empty prompt is one, where it is given: callers leave out what is blank in a table.

    Raises:
      JobError: for an unknown column, a missing prompt, or a value that can't be read or is out of range.
    """
    return Job(**values_from_text(row))


def values_from_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row of a file by field, each of its own type; arguments and errors as of `job_from_text`."""
    problem = unknown_fields(row)
    if problem:
        raise JobError(problem)
    values = {
        name: _from_any(FIELDS[name], value)
        for name, value in with_fields_named(row).items()
        if not _is_blank(value) or (name, value) == ("prompt", "")
    }
    if "prompt" not in values:
        raise JobError("there is no prompt in this row; fill in the column 'prompt'")
    return values


def value_from_text(name: str, value: Any) -> Any:
    """The canonical value of one field, given as text or typed; its default, where it has one, for a blank value.

    Raises:
      JobError: if it can't be read or is out of range.
    """
    field = FIELDS[name]
    if _is_blank(value) and field.default is not REQUIRED:
        return field.default
    return check(name, _from_any(field, value))


def field_from_text(name: str, text: str) -> Any:
    """The value of a field that is written as text, of its own type; raises `JobError` if it can't be read."""
    return _from_any(FIELDS[name], text)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _from_any(field: Field, value: Any) -> Any:
    """A value of the field's type, of one that may be text or a number of another type."""
    if not isinstance(value, str):
        return _from_number(field, value)
    if field.kind is str:
        return value
    return truth_from_text(field.name, value) if field.kind is bool else _number_from_text(field, value)


def _number_from_text(field: Field, text: str) -> Any:
    with contextlib.suppress(ValueError):
        return field.kind(text.strip())
    fraction = math.nan
    with contextlib.suppress(ValueError):
        fraction = float(text)
    if not fraction.is_integer():
        raise JobError(f"{field.name} = {quoted(text)}: expected a value of type {field.kind.__name__}")
    return _whole(field, fraction)


def truth_from_text(name: str, text: str) -> bool:
    """True or false in one of the words of tables; raises `JobError` for another."""
    found = TRUTHS.get(text.strip().lower())
    if found is None:
        raise JobError(f"{name} = {quoted(text)}: expected true or false")
    return found


def _from_number(field: Field, value: Any) -> Any:
    """2.0 as 2 where a whole number belongs, as tables with gaps hold it; a choice by its number."""
    if field.kind is bool and value in (0, 1):
        return bool(value)
    if field.name in _NUMBERED and isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0:
        return str(int(value))
    return _whole(field, value) if field.kind is int and isinstance(value, float) and value.is_integer() else value


def _whole(field: Field, number: float) -> int:
    if abs(number) > _EXACT:
        found = f"{field.name} = {quoted(number)}"
        raise JobError(f"{found}: expected a whole number without a point: above {_EXACT} digits are lost")
    return int(number)
