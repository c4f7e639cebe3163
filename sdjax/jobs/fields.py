"""The row of a job's field: what it may be, what it needs beside it, what other tools call it, and what it does."""

import dataclasses
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from sdjax import extensions
from sdjax.messages import near_match, quoted

REQUIRED: Any = dataclasses.MISSING


class JobError(ValueError):
    """A job that can't be: the message names the field, what was found and what is allowed."""


class Field(NamedTuple):
    """One field of `Job`: a row of the table from which validation, prompt files, docs and the JSON Schema are made.

    default: of a job that does not give the field; `REQUIRED` where each job has to.
    unset: what a default of None or of no text stands for, for the docs.
    group: the heading under which the docs have it.
    doc: what it does, in full sentences and Markdown.
    values: what the docs call its values, where neither `within` nor `choices` says it.
    within: the least and the largest number that it can be.
    longest: letters that a text may have.
    choices: the texts that it can be; with none, any text or those that `read` takes.
    known: texts that `read` takes, in their usual spellings, where it does not take any.
    spellings: other texts for choices, as `plain_choice` leaves them, such as the numbers of A1111's API.
    refused: choices of other tools that can't be had, as `plain_choice` leaves them, and how the error goes on.
    extended_by: the group of entry points by which other packages add values (`sdjax.extensions`).
    labels: what choices are called in the text that A1111 writes into images; these are read, too.
    read: (name of the field, value) -> the canonical value, or a `JobError`.
    paths: of fields that name image files: value -> the paths in it.
    needs: fields of which one has to be given wherever this one is not at its default.
    idle: whether a value meant for all rows of a run is left out of rows without the fields that this one needs.
    aliases: names of other tools for the field (A1111's command line and API, diffusers, ComfyUI's nodes).
    aliases_from_one: likewise, of a tool that counts from 1 what is counted from 0 here.
    label: its name in the text that A1111 writes into images; "" where that has none.
    column: its name in metadata, where that is another.
    name, kind, optional: from the class: its name, the type of its values, and whether None is one, too.
    """

    default: Any = REQUIRED
    unset: str = "none"
    group: str = ""
    doc: str = ""
    values: str = ""
    within: tuple[float, float] | None = None
    longest: int | None = None
    choices: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    spellings: Mapping[str, str] = {}
    refused: Mapping[str, str] = {}
    extended_by: str = ""
    labels: Mapping[str, str] = {}
    read: Callable[[str, Any], Any] | None = None
    paths: Callable[[str | None], tuple[str, ...]] | None = None
    needs: tuple[str, ...] = ()
    idle: bool = False
    aliases: tuple[str, ...] = ()
    aliases_from_one: tuple[str, ...] = ()
    label: str = ""
    column: str = ""
    name: str = ""
    kind: type = object
    optional: bool = False


def row(field: Field) -> Any:
    """A field of a dataclass, which carries its row."""
    return dataclasses.field(default=field.default, metadata={"row": field})


def fields_of(job_class: Any) -> dict[str, Field]:
    """The rows of a dataclass whose fields are made by `row`, by name, in their order."""
    hints = typing.get_type_hints(job_class)
    found = {each.name: each.metadata["row"] for each in dataclasses.fields(job_class)}
    return {name: _completed(field, name, hints[name]) for name, field in found.items()}


def _completed(field: Field, name: str, hint: Any) -> Field:
    types = typing.get_args(hint) or (hint,)
    labels = {plain_choice(label): choice for choice, label in field.labels.items() if choice in field.choices}
    return field._replace(
        name=name,
        kind=next(kind for kind in types if kind is not type(None)),
        optional=type(None) in types,
        spellings={**labels, **field.spellings},
        column=field.column or name,
    )


def attributes(fields: Iterable[Field]) -> str:
    """The part of a class' docstring that tells its attributes."""
    return "Attributes:\n" + "".join(f"  {field.name}: {field.doc}\n" for field in fields)


# --- Checks of one field alone ---


def check_value(field: Field, value: Any) -> Any:
    """The canonical form of a value: of the field's own type, and under the name that is recorded.

    Raises:
      JobError: if the field can't have it.
    """
    if field.paths is not None and isinstance(value, os.PathLike | str):
        value = os.fspath(value).strip() or None
    if value is None and field.optional:
        return None
    _check_type(field, value)
    if field.kind is float:
        value = _as_float(field.name, value)
    if field.within is not None:
        _check_within(field, value)
    if field.longest is not None and len(value) > field.longest:
        raise JobError(f"{field.name} has {len(value)} letters: expected up to {field.longest}")
    if field.choices:
        value = _choice(field, value)
    return value if field.read is None else field.read(field.name, value)


def _check_type(field: Field, value: Any) -> None:
    kinds = (int, float) if field.kind is float else field.kind
    if isinstance(value, kinds) and (field.kind is bool or not isinstance(value, bool)):
        return
    if field.paths is not None:
        raise JobError(
            f"{field.name} is a {type(value).__name__}: expected a path; for bytes see the read_image of sdjax.generate"
        )
    raise JobError(f"{field.name} = {quoted(value)}: expected a value of type {field.kind.__name__}")


def _as_float(name: str, value: float) -> float:
    """7 and 7.0 are the same job, and so are 0 and -0."""
    try:
        return float(value) + 0.0
    except OverflowError:
        raise JobError(f"{name} = {quoted(value)}: far too large") from None


def _check_within(field: Field, value: float) -> None:
    assert field.within is not None
    least, most = field.within
    if not least <= value <= most:  # NaN is not within anything
        raise JobError(f"{field.name} = {quoted(value)}: expected a number from {least} to {most}")


def plain_choice(text: str) -> str:
    """A text without what spellings differ in: "No norm" is `no_norm`."""
    return re.sub(r"[\s-]+", "_", text.strip().lower())


def _choice(field: Field, text: str) -> str:
    if text in field.choices or text in _added(field):
        return text
    plain = plain_choice(text)
    found = field.spellings.get(plain, plain)
    if found not in field.choices:
        raise not_among(field.name, text, (*field.choices, *_added(field)), hint=field.refused.get(plain, ""))
    return found


def _added(field: Field) -> tuple[str, ...]:
    """Choices that other packages add."""
    return extensions.names(field.extended_by) if field.extended_by else ()


def not_among(name: str, text: str, known: Iterable[str], spellings: Iterable[str] = (), hint: str = "") -> JobError:
    """The error of a field whose text is none of those that are known, with a near one.

    Args:
      name: of the field.
      text: that was found.
      known: what the error lists.
      spellings: more that may have been meant.
      hint: ends the error, instead of a near match.
    """
    known = tuple(known)
    hint = hint or near_match(text, (*spellings, *known), 0.4)
    return JobError(f"{name} = {quoted(text)}: expected one of {', '.join(known)}{hint}")
