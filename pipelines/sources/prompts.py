"""A prompt file -> rows -> jobs or rejects. Plain functions that stream; no Beam.

A row is whatever asks for an image: a line of text, a record of a table, an object. A blank line is no row,
in any format. What is wrong with one row is that row's problem, and what is wrong with the whole file (no
such format, no rows, columns that no job has, a gzip that breaks off) is a `PromptFileError`.
"""

import contextlib
import dataclasses
import gzip
import io
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipelines.config import RunConfig
from pipelines.sources.parquet import read_parquet
from pipelines.sources.rows import UTF8_MARK, PromptFileError, Row, read_jsonl, read_txt, shortened
from pipelines.sources.sweeps import PROMPTS, check_letters, check_number, drawn_seed, expand, row_key, size, swept
from pipelines.sources.tables import read_table
from sdjax.images.metadata import NO_TEXT
from sdjax.jobs.image_id import canonical_json
from sdjax.jobs.job import RANDOM_SEED, Job, check_each
from sdjax.jobs.seeds import repeated
from sdjax.jobs.text_values import filled_in, job_from_text, values_from_text, with_fields_named
from sdjax.messages import printable
from sdjax.text.template_grammar import Template, TemplateError, has_template, parse_template
from sdjax.text.templates import choose, combinations
from sdjax.text.wildcards import Wildcards, count

OpenBinary = Callable[[], io.BufferedIOBase]

_GZIP_MAGIC = b"\x1f\x8b"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class Reject(NamedTuple):
    """A row of which no image is made, and why."""

    source: str
    line: int
    text: str
    reason: str


# --- The formats ---


class _Format(NamedTuple):
    """How files of an extension are read.

    holds: what is expected in one.
    typed: whether its values have types, so that an empty text is one and no gap.
    """

    read: Callable[[io.BufferedIOBase, str], Iterator[Row]]
    holds: str
    typed: bool = False


FORMATS: dict[str, _Format] = {
    ".txt": _Format(read_txt, "a prompt a line"),
    ".csv": _Format(read_table(","), "a header with the column 'prompt', and rows under it"),
    ".tsv": _Format(read_table("\t"), "a header with the column 'prompt', and rows under it"),
    ".jsonl": _Format(read_jsonl, "an object with the key 'prompt' a line", typed=True),
    ".ndjson": _Format(read_jsonl, "an object with the key 'prompt' a line", typed=True),
    ".parquet": _Format(read_parquet, "a column 'prompt', and rows", typed=True),
}


# --- The file as a whole ---


def read_rows(open_binary: OpenBinary, name: str) -> Iterator[Row]:
    """The rows of a prompt file, one after the other, never all in memory.

    Args:
      open_binary: opens the file for its bytes as they are (gzip not undone); called twice.
      name: the file's name; its extension, with or without `.gz`, tells the format.

    Raises:
      PromptFileError: while iterating; for an extension that is not known, a file that can't be opened or holds
        no rows, a header with unknown or without needed columns, and damaged gzip or parquet data.
    """
    format_, gzipped = _format(name)
    count, line = 0, 0
    try:
        with open_binary() as stream:
            head = stream.read(len(UTF8_MARK))
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


class JobRequest(NamedTuple):
    """A job that a row asks for, and notes for its metadata on how it came about.

    notes: `prompt_template` and `negative_prompt_template` where there was one, and with them `template_mode`:
      "random" (the job's seed chose) or "all".
    """

    job: Job
    notes: dict[str, Any]


def parse(row: Row, config: RunConfig, run_name: str, wildcards: Wildcards) -> list[JobRequest] | Reject:
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
        return list(_requests(row, with_fields_named(given), config, run_name, wildcards))
    except OverflowError:
        return Reject(row.source, row.line, row.text, "a number in it is far too large; make it smaller")
    except ValueError as error:  # of jobs, sweeps, templates, or one of Python's own about numbers of too many digits
        return Reject(row.source, row.line, row.text, printable(shortened(str(error))))


def _requests(
    row: Row, given: Mapping[str, Any], config: RunConfig, run_name: str, wildcards: Wildcards
) -> Iterator[JobRequest]:
    mode = row_key(given, "combinations", config.run.combinations)
    # They have no say in seeds that are derived or drawn, so that the images of a sweep begin from the same noise.
    varied = swept(given) - set(PROMPTS)
    check_number(size(given, dict(config.sweeps), config.run.sweep) * config.run.repeat, "sweeps and repeats together")
    total = letters = 0
    for number, values in enumerate(expand(given, dict(config.sweeps), config.run.sweep)):
        filled = {name: value for name, value in values.items() if not _is_blank(value) or name == "prompt"}
        whole = filled_in(filled, dict(config.job))
        own = {name: value for name, value in filled.items() if name in given and name not in varied}
        templates = {} if mode == "none" else _templates(whole)
        notes = {f"{name}_template": template.text for name, template in templates.items()}
        notes |= {"template_mode": mode} if templates else {}
        counts = [_of(name, count, template, wildcards) for name, template in templates.items()]
        total += config.run.repeat * (math.prod(counts) if mode == "all" else 1)
        check_number(total, "or more, with all that its templates stand for")
        # At first the templates stand for themselves.
        texts_of_all: Iterable[tuple[str, ...]] = [tuple(template.text for template in templates.values())]
        if mode == "all":
            texts_of_all = itertools.product(*(_all(name, each, wildcards) for name, each in templates.items()))
        for texts in texts_of_all:
            letters += sum(map(len, texts))
            check_letters(letters)
            resolved = dict(zip(templates, texts, strict=True))
            asked = job_from_text({**whole, **resolved})
            alone = check_each(
                values_from_text({**own, **{name: text for name, text in resolved.items() if name in own}})
            )
            for repeat, job in enumerate(repeated(asked, alone, config.run.repeat, config.run.seed)):
                job = _with_seeds_drawn(job, alone, row, number, repeat, run_name)
                if mode == "random" and templates:
                    job = _with_texts_chosen(job, templates, wildcards)
                    letters += sum(len(getattr(job, name)) for name in templates)
                    check_letters(letters)
                yield JobRequest(job, notes)


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


def _with_seeds_drawn(job: Job, alone: Mapping[str, Any], row: Row, number: int, repeat: int, run_name: str) -> Job:
    """The job with its random seeds drawn, by the row's own fields; at `number` in its sweep of seeds, they differ."""
    several = number if isinstance((row.values or {}).get("seed"), list) else 0
    seeds: dict[str, Any] = {
        name: drawn_seed(run_name, row.source, row.line, f"{name} {several} {canonical_json(alone)}", repeat)
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
    return name == "prompt" and (row.values or {}).get(name) == "" and _format(row.source)[0].typed


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _check_text(name: str, value: Any) -> None:
    found = NO_TEXT.search(value) if isinstance(value, str) else None
    if found:
        what = "a NUL character" if found[0] == "\0" else f"half of a surrogate pair (\\u{ord(found[0]):04x})"
        raise ValueError(f"{name}: letter {found.start() + 1} is {what}, which no text file holds; remove it")
