"""A prompt file -> rows -> jobs or rejects. Plain functions that stream; no Beam.

A row is whatever asks for a picture: a line of text, a record of a table, an object. A blank line is no row,
in any format. What is wrong with one row is that row's problem, and what is wrong with the whole file (no
such format, no rows, columns that no job has, a gzip that breaks off) is a `PromptFileError`.
"""

import collections
import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import RunConfig
from pipelines.fields import filled_in, job_from_text, partner_of, unknown_fields, with_fields_named
from pipelines.sweeps import PROMPTS, ROW_KEYS, check_letters, check_number, drawn_seed, expand, row_key, size, swept
from sdjax.images.metadata import NO_TEXT
from sdjax.job import NEEDS, PICTURES, RANDOM_SEED, Job, repeated
from sdjax.text.template_grammar import Template, TemplateError, has_template, parse_template
from sdjax.text.templates import choose, combinations
from sdjax.text.wildcards import Wildcards, count

OpenBinary = Callable[[], io.BufferedIOBase]

# The longest line, and the longest record of several lines. Two prompts of the greatest length
# (`job.MAX_PROMPT`), with each letter as JSON's 12-byte escape, take 2.4 MB.
MAX_LINE_BYTES = 4 * 2**20
# What is shown of a line that is longer, and of a reason.
_SHOWN_LETTERS = 500
_PARQUET_BATCH = 256

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class PromptFileError(ValueError):
    """A prompt file that can't be used as a whole; the message names the file and says what to do."""


class Row(NamedTuple):
    """One row of a prompt file.

    source: the file's name.
    line: where it begins: the physical line, or in parquet the row, counted from 1.
    values: by job field, text as in the file or typed as in JSON and parquet; None if there is a problem.
    text: the row as it stands, for the report of rejects (unreadable bytes as U+FFFD, very long ones cut).
    problem: why it can't be read, or None.
    """

    source: str
    line: int
    values: dict[str, Any] | None
    text: str
    problem: str | None


class Reject(NamedTuple):
    """A row of which no picture is made, and why."""

    source: str
    line: int
    text: str
    reason: str


# --- From bytes to lines ---


class _Line(NamedTuple):
    number: int
    raw: bytes
    problem: str | None

    def shown(self) -> str:
        text = self.raw.rstrip(b"\r\n").decode("utf-8", "replace")
        return text if self.problem is None else shortened(text)


def shortened(text: str) -> str:
    """The text, cut where it is too long to show."""
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}… ({len(text)} letters)"


def _lines(stream: io.BufferedIOBase) -> Iterator[_Line]:
    """The physical lines with their ends, without the mark of UTF-8; bounded in memory."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES):
        number += 1
        problem = None
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            problem = f"the line is longer than {MAX_LINE_BYTES} bytes; is a line break missing?"
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        if number == 1:
            raw = raw.removeprefix(_UTF8_MARK)
        yield _Line(number, raw, problem)


def _bad_utf8(error: UnicodeDecodeError, raw: bytes) -> str:
    return f"byte {error.start + 1} of the row, 0x{raw[error.start]:02x}, is not UTF-8; save the file so"


# --- The formats ---


def _read_txt(stream: io.BufferedIOBase, name: str) -> Iterator[Row]:
    """A prompt a line, taken whole."""
    for line in _lines(stream):
        text, problem = line.shown(), line.problem
        if not problem:
            try:
                text = line.raw.rstrip(b"\r\n").decode()
            except UnicodeDecodeError as error:
                problem = _bad_utf8(error, line.raw)
            if "\r" in text and not problem:
                problem = "carriage returns within the line; save the file with line ends of Unix or Windows"
        if problem:
            yield Row(name, line.number, None, text, problem)
        elif text.strip():
            yield Row(name, line.number, {"prompt": text}, text, None)


def _read_jsonl(stream: io.BufferedIOBase, name: str) -> Iterator[Row]:
    """An object a line."""
    for line in _lines(stream):
        if not line.raw.strip():
            continue
        try:
            if line.problem:
                raise ValueError(line.problem)
            values = _json_object(line.raw.decode())
        except UnicodeDecodeError as error:
            yield Row(name, line.number, None, line.shown(), _bad_utf8(error, line.raw))
        except ValueError as error:
            yield Row(name, line.number, None, line.shown(), str(error))
        else:
            yield Row(name, line.number, values, line.shown(), None)


def _json_object(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = [name for name, count in collections.Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"the key {twice[0]!r} is there twice; keep one")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON; leave the key out where there is no value")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at letter {error.pos + 1}; expected an object") from None
    except RecursionError:
        raise ValueError("nested too deep; expected a flat object") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}; expected an object with the key 'prompt'")
    return value


class _Record(NamedTuple):
    """A record of a table: its fields, or a problem and the line that is given up for it."""

    lines: list[_Line]
    fields: list[str]
    problem: str | None

    def shown(self) -> str:
        return "\n".join(line.shown() for line in self.lines)


def _records(lines: Iterator[_Line], delimiter: str) -> Iterator[_Record]:
    """Records as Excel writes them (RFC 4180), each of one physical line or of several within quotes.

    A record that breaks the rules, such as by a quote that is never closed, costs its first line only: the
    reading goes on with the second.
    """
    waiting: collections.deque[_Line] = collections.deque()

    def taken(into: list[_Line]) -> Iterator[str]:
        size = 0
        while size < MAX_LINE_BYTES:
            line = waiting.popleft() if waiting else next(lines, None)
            if line is None:
                return
            into.append(line)
            if line.problem:
                return
            size += len(line.raw)
            yield line.raw.decode("utf-8", "surrogateescape")

    while True:
        record: list[_Line] = []
        try:
            fields = next(csv.reader(taken(record), delimiter=delimiter, strict=True))
            problem = None
        except StopIteration:
            fields, problem = [], None
        except csv.Error as error:
            fields, problem = [], f"not a record: {error}; is a quote not closed or not doubled?"
        if not record:
            return
        if record[-1].problem and len(record) == 1:
            problem = record[0].problem
        if problem:
            waiting.extendleft(reversed(record[1:]))
            yield _Record(record[:1], [], problem)
        elif any(field.strip() for field in fields) or len(fields) > 1:
            yield _Record(record, fields, _undecodable(record))


def _undecodable(record: list[_Line]) -> str | None:
    raw = b"".join(line.raw for line in record)
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return _bad_utf8(error, raw)
    return None


def _table(delimiter: str) -> Callable[[io.BufferedIOBase, str], Iterator[Row]]:
    def read(stream: io.BufferedIOBase, name: str) -> Iterator[Row]:
        records = _records(_lines(stream), delimiter)
        header = next(records, None)
        if header is None:
            return
        if header.problem:
            raise PromptFileError(f"{name}, line {header.lines[0].number}: the header: {header.problem}")
        columns = [column.strip() for column in header.fields]
        _check_columns(columns, name)
        for record in records:
            fields, problem = record.fields, record.problem
            if not problem and len(fields) != len(columns):
                problem = f"{len(fields)} values for {len(columns)} columns; is a quote missing?"
            values = None if problem else dict(zip(columns, fields, strict=True))
            yield Row(name, record.lines[0].number, values, record.shown(), problem)

    return read


def _check_columns(columns: Sequence[str], name: str) -> None:
    problem = unknown_fields(column for column in columns if column not in ROW_KEYS)
    if problem:
        raise PromptFileError(f"{name}: {problem}. Rename or remove it: nothing in a prompt file is ignored.")
    twice = [column for column, count in collections.Counter(columns).items() if count > 1]
    if twice:
        raise PromptFileError(f"{name}: the column {twice[0]!r} is there twice; keep one")
    if "prompt" not in columns:
        raise PromptFileError(f"{name}: no column 'prompt' in the header, which is {', '.join(columns)}")


def _read_parquet(stream: io.BufferedIOBase, name: str) -> Iterator[Row]:
    """A column per job field; lines are rows, counted from 1."""
    with contextlib.ExitStack() as stack:
        if not isinstance(stream, gzip.GzipFile):
            file: Any = stream
        else:  # which can't be read from its end, where parquet keeps its table of contents
            file = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, file)
        try:
            table = pq.ParquetFile(file)
            _check_columns(table.schema_arrow.names, name)
            number = 0
            for batch in table.iter_batches(_PARQUET_BATCH):
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(batch.slice(index, 1), name, number)
        except (pa.ArrowException, OSError) as error:
            raise PromptFileError(f"{name}: not a whole parquet file: {error}. Write it again.") from error


def _parquet_row(row: pa.RecordBatch, name: str, number: int) -> Row:
    try:
        [values] = row.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, dates out of Python's range
        return Row(name, number, None, "", f"a value can't be read: {error}")
    return Row(name, number, values, json.dumps(values, default=str, ensure_ascii=False), None)


class _Format(NamedTuple):
    read: Callable[[io.BufferedIOBase, str], Iterator[Row]]
    holds: str  # what is expected in such a file


FORMATS: dict[str, _Format] = {
    ".txt": _Format(_read_txt, "a prompt a line"),
    ".csv": _Format(_table(","), "a header with the column 'prompt', and rows under it"),
    ".tsv": _Format(_table("\t"), "a header with the column 'prompt', and rows under it"),
    ".jsonl": _Format(_read_jsonl, "an object with the key 'prompt' a line"),
    ".ndjson": _Format(_read_jsonl, "an object with the key 'prompt' a line"),
    ".parquet": _Format(_read_parquet, "a column 'prompt', and rows"),
}


# --- The file as a whole ---


def read_rows(open_binary: OpenBinary, name: str) -> Iterator[Row]:
    """The rows of a prompt file, one after the other, never all in memory.

    Args:
      open_binary: opens the file for its bytes as they are (gzip not undone); called twice.
      name: the file's name; its extension, with or without `.gz`, tells the format.

    Raises:
      PromptFileError: while iterating; for an extension that is not known, a file that can't be opened or
      holds
        no rows, a header with unknown or without needed columns, and damaged gzip or parquet data.
    """
    format_, gzipped = _format(name)
    count, line = 0, 0
    try:
        with open_binary() as stream:
            head = stream.read(len(_UTF8_MARK))
        _check_head(head, gzipped, name)
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(open_binary())
            if gzipped:
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            for row in format_.read(stream, name):
                count, line = count + 1, row.line
                yield row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise PromptFileError(
            f"{name}: the gzip data are damaged or break off after line {line}: {error}. Compress it again."
        ) from error
    except OSError as error:
        # An error of storage names the file already.
        named = str(error).startswith(name)
        raise PromptFileError(str(error) if named else f"{name}: can't be read: {error}") from error
    if not count:
        raise PromptFileError(f"{name}: no prompts in it; expected {format_.holds}")


def _format(name: str) -> tuple[_Format, bool]:
    path = PurePosixPath(name.lower())
    gzipped = path.suffix == ".gz"
    extension = PurePosixPath(path.stem).suffix if gzipped else path.suffix
    if extension not in FORMATS:
        raise PromptFileError(
            f"{name}: the extension {extension!r} tells no format of prompts; expected {', '.join(FORMATS)}, "
            "each also with .gz"
        )
    return FORMATS[extension], gzipped


def _check_head(head: bytes, gzipped: bool, name: str) -> None:
    if head and gzipped != head.startswith(_GZIP_MAGIC):
        found = "not gzipped; take .gz off" if gzipped else "gzipped; add .gz to"
        raise PromptFileError(f"{name}: the data are {found} the name")
    if head.startswith(_UTF16_MARKS):
        raise PromptFileError(f"{name}: the text is UTF-16; save it as UTF-8")


# --- From rows to jobs ---


class Asked(NamedTuple):
    """A job that a row asks for, and notes for its metadata on how it came about.

    notes: `prompt_template` and `negative_prompt_template` where there was one, and with them `template_mode`:
      "random" (the job's seed chose) or "all".
    """

    job: Job
    notes: dict[str, Any]


def parse(row: Row, config: RunConfig, run_name: str, wildcards: Wildcards) -> list[Asked] | Reject:
    """The jobs that a row asks for, or why there are none: a row is made as a whole or not at all.

    Args:
      row: from `read_rows`.
      config: says what the row leaves open by missing, null and blank values.
      run_name: of this run, unlike any other's; random seeds are drawn from it.
      wildcards: for the templates in prompts.
    """
    if row.values is None:
        return Reject(row.source, row.line, row.text, row.problem or "unreadable")
    given = {name: value for name, value in row.values.items() if not _is_blank(value) or _is_empty_prompt(row, name)}
    try:
        for name, value in given.items():
            for each in value if isinstance(value, list) else [value]:
                _check_text(name, each)
        return list(_asked(row, with_fields_named(given), config, run_name, wildcards))
    except OverflowError:
        return Reject(row.source, row.line, row.text, "a number in it is far too large; make it smaller")
    except ValueError as error:  # of jobs, sweeps, templates, or one of Python's own about numbers of too many digits
        return Reject(row.source, row.line, row.text, shortened(str(error)))


def _asked(
    row: Row, given: Mapping[str, Any], config: RunConfig, run_name: str, wildcards: Wildcards
) -> Iterator[Asked]:
    mode = row_key(given, "combinations", config.combinations)
    # They have no say in seeds that are derived or drawn, so that the pictures of a sweep begin from the same noise.
    varied = swept(given) - set(PROMPTS)
    check_number(size(given, dict(config.sweeps), config.sweep) * config.repeat, "sweeps and repeats together")
    total = letters = 0
    for number, values in enumerate(expand(given, dict(config.sweeps), config.sweep)):
        filled = {name: value for name, value in values.items() if not _is_blank(value) or name == "prompt"}
        whole = filled_in(filled, dict(config.job))
        own = {name: value for name, value in filled.items() if name in given and name not in varied}
        for name, partner in NEEDS.items():  # which the configuration or the sweep gives
            if name in own and partner not in own and partner in whole:
                own[partner] = partner_of(name, own)
            elif name in own and partner not in own and not PICTURES.keys().isdisjoint(whole):
                own.setdefault("image", "any")  # which serves as well
        templates = {} if mode == "none" else _templates(whole)
        notes = {f"{name}_template": template.text for name, template in templates.items()}
        notes |= {"template_mode": mode} if templates else {}
        counts = [_of(name, count, template, wildcards) for name, template in templates.items()]
        total += config.repeat * (math.prod(counts) if mode == "all" else 1)
        check_number(total, "or more, with all that its templates stand for")
        # At first the templates stand for themselves.
        texts_of_all: Iterable[tuple[str, ...]] = [tuple(template.text for template in templates.values())]
        if mode == "all":
            texts_of_all = itertools.product(*(_all(name, each, wildcards) for name, each in templates.items()))
        for texts in texts_of_all:
            letters += sum(map(len, texts))
            check_letters(letters)
            resolved = dict(zip(templates, texts, strict=True))
            asked = job_from_text({**own, **{name: text for name, text in resolved.items() if name in own}})
            for repeat, job in enumerate(
                repeated(job_from_text({**whole, **resolved}), asked, config.repeat, config.run_seed)
            ):
                job = _with_seeds_drawn(job, asked, row, number, repeat, run_name)
                if mode == "random" and templates:
                    job = _with_texts_chosen(job, templates, wildcards)
                    letters += sum(len(getattr(job, name)) for name in templates)
                    check_letters(letters)
                yield Asked(job, notes)


def _templates(values: Mapping[str, Any]) -> dict[str, Template]:
    """What is a template among prompt and negative prompt."""
    texts = {name: values.get(name) for name in PROMPTS}
    return {
        name: _of(name, parse_template, text)
        for name, text in texts.items()
        if isinstance(text, str) and has_template(text)
    }


def _of(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result; what it says of a template is said with the field's name."""
    try:
        return function(*arguments)
    except TemplateError as error:
        raise ValueError(f"{name}: {error}") from None


def _all(name: str, template: Template, wildcards: Wildcards) -> list[str]:
    texts: list[str] = []
    letters = 0
    found = _of(name, combinations, template, wildcards)
    while (text := _of(name, next, found, None)) is not None:
        letters += len(text)
        check_letters(letters)
        _check_text(name, text)
        texts.append(text)
    return texts


def _with_seeds_drawn(job: Job, asked: Job, row: Row, number: int, repeat: int, run_name: str) -> Job:
    """Random seeds; those of a list of them, at `number` in the row's sweep, differ."""
    several = number if isinstance((row.values or {}).get("seed"), list) else 0
    seeds: dict[str, Any] = {
        name: drawn_seed(run_name, row.source, row.line, f"{name} {several} {asked.to_json()}", repeat)
        for name in ("seed", "variation_seed")
        if getattr(job, name) == RANDOM_SEED
    }
    return dataclasses.replace(job, **seeds) if seeds else job


def _with_texts_chosen(job: Job, templates: Mapping[str, Template], wildcards: Wildcards) -> Job:
    texts = {name: _of(name, choose, each, wildcards, job.seed, name) for name, each in templates.items()}
    for name, text in texts.items():
        _check_text(name, text)
    if _is_blank(texts.get("prompt", job.prompt)):
        raise ValueError("prompt: the template gives no text; leave something in it whatever is chosen")
    return dataclasses.replace(job, **texts)


def _is_empty_prompt(row: Row, name: str) -> bool:
    """Whether the prompt is said to be empty: where values have types, as in JSON; in a table it was left out."""
    typed = any(ending in row.source.lower() for ending in (".jsonl", ".ndjson", ".parquet"))
    return typed and name == "prompt" and (row.values or {}).get(name) == ""


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _check_text(name: str, value: Any) -> None:
    found = NO_TEXT.search(value) if isinstance(value, str) else None
    if found:
        what = "a NUL character" if found[0] == "\0" else f"half of a surrogate pair (\\u{ord(found[0]):04x})"
        raise ValueError(f"{name}: letter {found.start() + 1} is {what}, which no text file holds; remove it")
