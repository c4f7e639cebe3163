"""One row that asks for many images: `seed: 1..100`, lists of values, and seeds drawn at random."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sdjax.jobs.job import FIELDS, IMAGE_FIELDS
from sdjax.jobs.text_values import (
    field_from_text,
    field_named,
    is_number,
    is_whole_number,
    unknown_fields,
    value_from_text,
    with_fields_named,
)
from sdjax.messages import near_match, printable, quoted

# Images of one row: these are in memory at once.
MAX_PER_ROW = 1_000_000
# Values of all fields of a row together, which are in memory too: `zip` takes as many of each.
MAX_VALUES = 4 * MAX_PER_ROW
# Letters of all texts that a row's templates become.
MAX_LETTERS_PER_ROW = 100_000_000

# What a row may say besides the fields of its job, and what it may say there; the first is what holds if it does not.
#   sweep: whether lists of values are combined each with each, or the first values, the second and so on.
#   combinations: whether templates give one text, chosen by the seed, or all; or are no templates at all.
ROW_KEYS: Mapping[str, tuple[str, ...]] = {
    "sweep": ("product", "zip"),
    "combinations": ("random", "all", "none"),
}
# Whose texts may hold commas and dots of their own.
PROMPTS = ("prompt", "negative_prompt")
_NUMBER = r"\s*([+-]?)(?=\.?[0-9])([0-9]*)(?:\.([0-9]+))?\s*"
_RANGE = re.compile(rf"{_NUMBER}\.\.{_NUMBER}(?:\.\.{_NUMBER})?")
# Of a seed; nothing else is longer.
_DIGITS = 20
_SEED_BYTES = 6
# Of a sweep, in errors.
_SHOWN_LETTERS = 200


class SweepError(ValueError):
    """Values that can't be swept over; the message names the field, what was found and what is expected."""


# --- The values of one field ---


def values_of(name: str, value: Any) -> Sequence[Any]:
    """The values that a field of a row stands for, in their order; mostly one.

    Args:
      name: of the field.
      value: text as in a table or on the command line, or typed as in JSON and parquet. Text of numbers may hold
        ranges, both ends included (`1..100`, `1..9..2`, `4..8..0.5`), and commas (`1, 4, 7..9`); text of names may
        hold commas; a list holds values of any field.

    Raises:
      SweepError: for a list that is empty or within another, and for ranges that make no sense.
      JobError: for a number that can't be read, and for an unknown field.
    """
    if name not in FIELDS and (problem := unknown_fields([name])):
        raise SweepError(problem)
    if not isinstance(value, list | tuple):
        return _from_text(name, value) if isinstance(value, str) else (value,)
    if not value:
        raise SweepError(f"{name} = []: expected values in the list; without any leave the key out")
    found: list[Any] = []
    for each in value:
        if isinstance(each, list | tuple):
            raise SweepError(f"{name}: a list within a list; expected values such as {_EXAMPLES[is_number(name)]}")
        found += _from_text(name, each) if isinstance(each, str) else (each,)
        _bounded(name, found)
    return found


_EXAMPLES = {True: "1, 4, 7..9", False: "euler, ddim"}


def _from_text(name: str, text: str) -> Sequence[Any]:
    if name in PROMPTS or name in IMAGE_FIELDS or ("," not in text and (".." not in text or not is_number(name))):
        return (text,)
    found: list[Any] = []
    for piece in text.split(","):
        if not piece.strip():
            raise SweepError(
                f"{name} = {quoted(text)}: nothing between two commas; expected {_EXAMPLES[is_number(name)]}"
            )
        if not is_number(name):
            found.append(piece.strip())
        elif ".." in piece:
            found += _range(name, piece)
            _bounded(name, found)
        else:
            found.append(field_from_text(name, piece.strip()))
    return found


def _bounded(name: str, values: Sequence[Any]) -> None:
    if len(values) > MAX_PER_ROW:
        raise SweepError(f"{name}: {len(values)} values; expected up to {MAX_PER_ROW}")


def _range(name: str, text: str) -> Sequence[int | float]:
    """The numbers of `first..last` or `first..last..step`: exact decimals, from which floats are made last."""
    said = f"{name} = {text.strip()[:60]!r}"
    found = _RANGE.fullmatch(text)
    numbers = [found.groups()[start : start + 3] for start in (0, 3, 6)] if found else []
    given = [(sign, whole, fraction or "") for sign, whole, fraction in numbers if sign is not None]
    if not given or any(len(whole + fraction) > _DIGITS for _, whole, fraction in given):
        raise SweepError(f"{said}: expected first..last or first..last..step, such as 1..100 or 4..8..0.5")
    digits = max(len(fraction) for _, _, fraction in given)
    scaled = [int(f"{sign}{whole or 0}{fraction.ljust(digits, '0')}") for sign, whole, fraction in given]
    scale = 10**digits
    first, last = scaled[:2]
    if len(scaled) == 2:
        if first % scale or last % scale:
            raise SweepError(f"{said}: expected a step, such as {text.strip()[:60]}..0.1")
        scaled.append(scale)
    step = abs(scaled[2]) if last >= first else -abs(scaled[2])
    if not step:
        raise SweepError(f"{said}: the step is 0; expected one above it")
    count = (last - first) // step + 1
    if count > MAX_PER_ROW:
        raise SweepError(f"{said}: {count} values; expected up to {MAX_PER_ROW}")
    if not is_whole_number(name):
        return [(first + index * step) / scale for index in range(count)]
    if first % scale or step % scale:
        raise SweepError(f"{said}: expected whole numbers")
    return [(first + index * step) // scale for index in range(count)]


# --- The rows that a row stands for ---


def row_key(values: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """What a row says under one of `ROW_KEYS`; the default, or else the first that is known, if it says nothing.

    Raises:
      SweepError: if it says what is not known.
    """
    known = ROW_KEYS[key]
    value = values.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return default or known[0]
    if not isinstance(value, str) or value.strip() not in known:
        hint = near_match(value, known, 0.4) if isinstance(value, str) else ""
        raise SweepError(f"{key} = {quoted(value)}: expected one of {', '.join(known)}{hint}")
    return value.strip()


def _axes(values: Mapping[str, Any], sweeps: Mapping[str, Any], mode: str) -> list[dict[str, Sequence[Any]]]:
    """Groups of fields with their values: those of a group go on together, and groups are combined each with each."""
    own = _all_values({name: value for name, value in values.items() if name not in ROW_KEYS})
    others = _all_values({name: value for name, value in sweeps.items() if name not in own})
    return [*_grouped(own, row_key(values, "sweep")), *_grouped(others, mode)]


def _all_values(fields: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    found: dict[str, Sequence[Any]] = {}
    total = 0
    for name, value in fields.items():
        found[name] = values_of(name, value)
        total += len(found[name])
        if total > MAX_VALUES:
            raise SweepError(
                f"the fields up to {name} have {total} values; expected up to {MAX_VALUES} of all together"
            )
    return found


def _grouped(fields: Mapping[str, Sequence[Any]], mode: str) -> list[dict[str, Sequence[Any]]]:
    if mode == "product":
        return [{name: found} for name, found in fields.items()]
    lengths = {name: len(found) for name, found in fields.items() if len(found) > 1}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise SweepError(f"sweep = 'zip' takes as many values of each field, but {counts}; make them equal")
    length = max(lengths.values(), default=1)
    together = {name: found if len(found) > 1 else list(found) * length for name, found in fields.items()}
    return [together] if together else []


def swept(values: Mapping[str, Any]) -> frozenset[str]:
    """The fields of a row that have more than one value; raises as `values_of`."""
    return frozenset(name for name, value in values.items() if name not in ROW_KEYS and len(values_of(name, value)) > 1)


def size(values: Mapping[str, Any], sweeps: Mapping[str, Any], mode: str = "product") -> int:
    """How many rows `expand` gives; raises as it."""
    return _size(_axes(values, sweeps, mode))


def _size(axes: Iterable[Mapping[str, Sequence[Any]]]) -> int:
    lengths = [(name, len(found)) for group in axes for name, found in itertools.islice(group.items(), 1)]
    total = math.prod(length for _, length in lengths)
    check_number(total, " x ".join(f"{length} of {name}" for name, length in lengths if length > 1))
    return total


def check_number(total: int, what: str) -> None:
    """Raises `SweepError` if there are more images of one row than `MAX_PER_ROW`."""
    if total > MAX_PER_ROW:
        total = min(total, 10**18)  # from which on nothing is counted
        raise SweepError(
            f"this row asks for {total} images ({what}); expected up to {MAX_PER_ROW}. Cut it into several rows"
        )


def check_letters(total: int) -> None:
    """Raises `SweepError` if a row's templates become texts of more letters than `MAX_LETTERS_PER_ROW`."""
    if total > MAX_LETTERS_PER_ROW:
        raise SweepError(
            f"the templates of this row become texts of more than {MAX_LETTERS_PER_ROW} letters together, which are in "
            "memory at once; cut it into several rows, or make them shorter"
        )


def expand(values: Mapping[str, Any], sweeps: Mapping[str, Any], mode: str = "product") -> Iterator[dict[str, Any]]:
    """The rows that a row stands for, one after the other, the last field varying fastest.

    Args:
      values: of the row, by field (`job.with_fields_named`), in its order, and what it says under `ROW_KEYS`.
      sweeps: likewise of fields that the row may leave open; they vary faster than the row's own.
      mode: how those are combined with each other: "product" or "zip".

    Raises:
      SweepError: at once, if a field can't be read, `zip` finds fields of different lengths, or there are more than
        `MAX_PER_ROW` rows.
      JobError: for a number that can't be read.
    """
    axes = _axes(values, sweeps, mode)
    _size(axes)
    return _expanded(axes)


def _expanded(axes: Sequence[Mapping[str, Sequence[Any]]]) -> Iterator[dict[str, Any]]:
    groups = [[dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)] for group in axes]
    for chosen in itertools.product(*groups):
        yield {name: value for group in chosen for name, value in group.items()}


def read_sweeps(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Sweeps of the command line, each `KEY=VALUES`; values as in a table, or a JSON list.

    Raises:
      SweepError: for another form, an unknown or repeated key, a prompt, and values that no job may have.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        said = f"--sweep {printable(text[:_SHOWN_LETTERS])}"
        name, equals, values = (part.strip() for part in text.partition("="))
        key = field_named(name)
        if not equals or not values:
            raise SweepError(f"{said}: expected KEY=VALUES, such as steps=10..50..10")
        if key in found:
            raise SweepError(f"{said}: {key} is swept already; give all its values at once")
        if key == "prompt":
            raise SweepError(f"{said}: prompts belong into the prompt file")
        try:
            [(key, typed)] = with_fields_named({key: _typed(key, values)}).items()
            found[key] = tuple(values_of(key, typed))
            for value in found[key]:
                value_from_text(key, value)
        except ValueError as error:  # SweepError, JobError, or one of Python's own about numbers of too many digits
            raise SweepError(f"{said}: {error}") from None
    return found


def _typed(key: str, text: str) -> Any:
    if not text.startswith("["):
        if key in PROMPTS:
            raise SweepError(f'expected a JSON list of texts, such as ["", "blurry"], for {key}')
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SweepError(f"not a JSON list: {error}") from None


# --- Seeds drawn at random ---


def drawn_seed(entropy: str, source: str, line: int, content: str, repeat: int) -> int:
    """A seed for a row that asks for a random one by -1: 48 bits.

    Within a run it is the same however often a worker tries; another run draws another.

    Args:
      entropy: of the run, unlike any other's.
      source: the row's file.
      line: its place there, so that rows alike get different seeds.
      content: what the row asks for, and of which of its seeds this is.
      repeat: its number among the images of the row.
    """
    text = json.dumps(["sdjax drawn seed", entropy, source, line, content, repeat])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:_SEED_BYTES])
