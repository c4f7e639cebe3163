"""Rows of prompt files that are lines of text or objects, and what a row of any file may hold."""

import collections
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipelines.sources.sweeps import MAX_PER_ROW
from sdjax.messages import quoted

# The longest line, and the longest record of several lines. Two prompts of the greatest length
# (`job.MAX_PROMPT`), with each letter as JSON's 12-byte escape, take 2.4 MB.
MAX_LINE_BYTES = 4 * 2**20
# What is quoted of a line that is longer, and of a reason.
_SHOWN_LETTERS = 500
# Of a whole number in JSON: as many as a float64 can have.
_MOST_DIGITS = 309

# U+FEFF: in front of a text that says it is UTF-8, and wherever such texts were joined. It is no letter anywhere.
MARK = "\ufeff"
UTF8_MARK = MARK.encode()


class PromptFileError(ValueError):
    """A prompt file that can't be used as a whole; the message names the file and says what to do."""


class Row(NamedTuple):
    """One row of a prompt file.

    source: the file's name.
    line: where it begins: the physical line, or in parquet the row, counted from 1.
    values: by job field, text as in the file, or typed as in JSON and parquet (None, truths, numbers, texts, and lists
      of these); None if there is a problem.
    text: the row as it stands, for the report of rejects (unreadable bytes as U+FFFD, very long ones cut).
    problem: why it can't be read, or None.
    """

    source: str
    line: int
    values: dict[str, Any] | None
    text: str
    problem: str | None


def shortened(text: str) -> str:
    """The text, cut where it is too long to show."""
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}… ({len(text)} letters)"


def typed_row(source: str, line: int, values: Mapping[str, Any], text: str) -> Row:
    """A row of values with types. It has a problem if one holds more than a field can: a list of plain values."""
    problem = next(filter(None, (_problem_of(name, value) for name, value in values.items())), None)
    if problem:
        return Row(source, line, None, text, problem)
    plain = {_unmarked(name): _unmarked(value) for name, value in values.items()}
    if len(plain) < len(values):
        return Row(source, line, None, text, "two keys differ by U+FEFF alone, a mark that nobody sees; keep one")
    return Row(source, line, plain, text, None)


def _problem_of(name: str, value: Any) -> str | None:
    several = isinstance(value, list | tuple)
    strange = next((each for each in (value if several else [value]) if not isinstance(each, _PLAIN)), None)
    if strange is not None:
        kind = _KINDS.get(type(strange), type(strange).__name__)
        where = " within a list" if several else ""
        return f"{quoted(name)} holds {kind}{where}; expected a text, a number, true, false, or a list of such"
    if several and len(value) > MAX_PER_ROW:
        return f"{quoted(name)} holds {len(value)} values; expected up to {MAX_PER_ROW}"
    return None


_PLAIN = (str, int, float, bool, type(None))
_KINDS: Mapping[type, str] = {dict: "an object", list: "a list", bytes: "bytes"}


def _unmarked(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(MARK, "")
    return [_unmarked(each) for each in value] if isinstance(value, list) else value


# --- From bytes to lines ---


class Line(NamedTuple):
    """A physical line with its end, without marks of UTF-8, and why it can't be used, or None."""

    number: int
    raw: bytes
    problem: str | None

    def text(self) -> str:
        """As rejects show it."""
        text = self.raw.rstrip(b"\r\n").decode("utf-8", "replace")
        return text if self.problem is None else shortened(text)


def lines_of(stream: io.BufferedIOBase) -> Iterator[Line]:
    """The physical lines; bounded in memory."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES):
        number += 1
        problem = None
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            problem = f"the line is longer than {MAX_LINE_BYTES} bytes; is a line break missing?"
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        yield Line(number, raw.replace(UTF8_MARK, b""), problem)


def not_utf8(error: UnicodeDecodeError, raw: bytes) -> str:
    """What is wrong with bytes that are no text."""
    return f"byte {error.start + 1} of the row, 0x{raw[error.start]:02x}, is not UTF-8; save the file so"


# --- Prompts as lines ---

# Lines of other tools' prompt files that are no prompts, and what they are. Hyphens within words and dashes between
# words are none of these.
_NOT_PROMPTS: Mapping[str, re.Pattern[str]] = {
    "a comment (# or //)": re.compile(r"^\s*(?:#|//)"),
    "a line with options (--name, as A1111 and sd-scripts have them)": re.compile(r"(?:^|\s)--[A-Za-z]"),
    "a line with options (-n4 -S1234, as InvokeAI has them)": re.compile(
        r'(?:^|\s)-[A-Za-z] ?[0-9]+(?:\.[0-9]+)?(?:\s|$)|^\s*"[^"]*"\s+-[A-Za-z]'
    ),
}


def read_txt(stream: io.BufferedIOBase, name: str) -> Iterator[Row]:
    """A prompt a line, taken whole."""
    for line in lines_of(stream):
        text, problem = line.text(), line.problem
        if not problem:
            try:
                text = line.raw.rstrip(b"\r\n").decode()
            except UnicodeDecodeError as error:
                problem = not_utf8(error, line.raw)
            if "\r" in text and not problem:
                problem = "carriage returns within the line; save the file with line ends of Unix or Windows"
        problem = problem or _no_prompt(text)
        if problem:
            yield Row(name, line.number, None, text, problem)
        elif text.strip():
            yield Row(name, line.number, {"prompt": text}, text, None)


def _no_prompt(text: str) -> str | None:
    for what, pattern in _NOT_PROMPTS.items():
        if pattern.search(text):
            return (
                f"this looks like {what}, which is not read in a .txt file; take it out. Options are columns of a "
                ".csv or keys of a .jsonl file, in which prompts may look so too"
            )
    return None


# --- Objects ---


def read_jsonl(stream: io.BufferedIOBase, name: str) -> Iterator[Row]:
    """An object a line."""
    for line in lines_of(stream):
        if not line.raw.strip():
            continue
        try:
            if line.problem:
                raise ValueError(line.problem)
            values = _json_object(line.raw.decode())
        except UnicodeDecodeError as error:
            yield Row(name, line.number, None, line.text(), not_utf8(error, line.raw))
        except ValueError as error:
            yield Row(name, line.number, None, line.text(), str(error))
        else:
            yield typed_row(name, line.number, values, line.text())


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at letter {error.pos + 1}; expected an object") from None
    except RecursionError:
        raise ValueError("nested too deep; expected a flat object") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}; expected an object with the key 'prompt'")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"the key {quoted(twice[0])} is there twice; keep one")
    return dict(pairs)


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON; leave the key out where there is no value")


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, {digits[:20]}...; no field holds one")
    return int(digits)
