"""Rows of prompt files that are tables of text: a header of fields, and records under it."""

import collections
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pipelines.sources.rows import MAX_LINE_BYTES, Line, PromptFileError, Row, lines_of, not_utf8, shortened
from pipelines.sources.sweeps import ROW_KEYS
from sdjax.jobs.text_values import is_number, unknown_fields
from sdjax.messages import printable, quoted

# Of one record; prompts have few. Where a quote is open, each line is read again after the one before is given up.
_MOST_LINES = 1000
# What may stand between two values, in any table: Excel writes semicolons where the comma is the decimal point.
_DELIMITERS = ",;\t"
# Excel's own line in front of the header.
_SEP = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)


class _Record(NamedTuple):
    """A record of a table: its fields, or a problem and the line that is given up for it."""

    lines: list[Line]
    fields: list[str]
    problem: str | None

    def text(self) -> str:
        return "\n".join(line.text() for line in self.lines)


def _records(lines: Iterator[Line], delimiter: str) -> Iterator[_Record]:
    """Records as Excel writes them (RFC 4180), each of one physical line or of several within quotes.

    A record that breaks the rules, such as by a quote that is never closed, costs its first line only: the
    reading goes on with the second.
    """
    waiting: collections.deque[Line] = collections.deque()

    def taken(into: list[Line]) -> Iterator[str]:
        size = 0
        while size < MAX_LINE_BYTES and len(into) < _MOST_LINES:
            line = waiting.popleft() if waiting else next(lines, None)
            if line is None:
                return
            into.append(line)
            if line.problem:
                return
            size += len(line.raw)
            yield line.raw.decode("utf-8", "surrogateescape")

    while True:
        record: list[Line] = []
        try:
            fields = next(csv.reader(taken(record), delimiter=delimiter, strict=True))
            problem = None
        except StopIteration:
            fields, problem = [], None
        except csv.Error as error:
            fields, problem = [], f"not a record: {printable(str(error))}; is a quote not closed or not doubled?"
        if not record:
            return
        if record[-1].problem and len(record) == 1:
            problem = record[0].problem
        if problem:
            waiting.extendleft(reversed(record[1:]))
            yield _Record(record[:1], [], problem)
        elif any(field.strip() for field in fields) or len(fields) > 1:
            yield _Record(record, fields, _undecodable(record))


def _undecodable(record: list[Line]) -> str | None:
    raw = b"".join(line.raw for line in record)
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return not_utf8(error, raw)
    return None


def read_table(delimiter: str) -> Callable[[io.BufferedIOBase, str], Iterator[Row]]:
    """A reader of tables whose values are parted by this, unless their first line says or shows otherwise."""

    def read(stream: io.BufferedIOBase, name: str) -> Iterator[Row]:
        lines = lines_of(stream)
        first = next((line for line in lines if line.raw.strip()), None)
        if first is None:
            return
        found, said = _delimiter_of(first, delimiter, name)
        records = _records(lines if said else itertools.chain([first], lines), found)
        header = next(records, None)
        if header is None:
            return
        if header.problem:
            raise PromptFileError(f"{name}, line {header.lines[0].number}: the header: {header.problem}")
        columns = [column.strip() for column in header.fields]
        check_columns(columns, name)
        for record in records:
            yield _row(record, columns, found, name)

    return read


def _delimiter_of(first: Line, usual: str, name: str) -> tuple[str, bool]:
    """What parts values, and whether the line says it and is no header. Another than the usual one is only taken for it
    where that makes the line a header.
    """
    text = first.raw.decode("utf-8", "surrogateescape")
    if said := _SEP.fullmatch(text):
        if said[1] not in _DELIMITERS:
            raise PromptFileError(f"{name}: 'sep={printable(said[1])}' in its first line; expected one of , ; and tab")
        return said[1], True
    for delimiter in (usual, *_DELIMITERS):
        columns = [column.strip(' "\r\n') for column in text.split(delimiter)]
        if len(columns) > 1 and "prompt" in columns:
            return delimiter, False
    return usual, False


def _row(record: _Record, columns: Sequence[str], delimiter: str, name: str) -> Row:
    fields, problem = record.fields, record.problem
    if not problem and len(fields) != len(columns):
        problem = f"{len(fields)} values for {len(columns)} columns; is a quote missing?"
    values = dict(zip(columns, fields, strict=False))
    if not problem and delimiter == ";":
        problem = _doubtful(values)
    return Row(name, record.lines[0].number, None if problem else values, record.text(), problem)


def _doubtful(values: dict[str, str]) -> str | None:
    """A number with a comma, which is a decimal point where semicolons part values, and elsewhere a list of two."""
    for column, value in values.items():
        if "," in value and is_number(column):
            return (
                f"{column} = {quoted(value)}: a comma in a number, in a table parted by ';'; write a decimal point "
                "(7.5), and several values in a table parted by commas"
            )
    return None


def check_columns(columns: Sequence[str], name: str) -> None:
    """Raises `PromptFileError` unless these can be the columns of a file, by their names."""
    problem = unknown_fields(column for column in columns if column not in ROW_KEYS)
    if problem:
        raise PromptFileError(f"{name}: {problem}. Rename or remove it: nothing in a prompt file is ignored.")
    twice = [column for column, count in collections.Counter(columns).items() if count > 1]
    if twice:
        raise PromptFileError(f"{name}: the column {twice[0]!r} is there twice; keep one")
    if "prompt" not in columns:
        raise PromptFileError(f"{name}: no column 'prompt' in the header, which is {shortened(', '.join(columns))}")
