"""ComfyUI's prompt grammar: `(words)` weigh 1.1 times as much, `(words:1.3)` weigh 1.3.

Reads what ComfyUI reads (`comfy/sd1_clip.py`): a number replaces the weights of brackets further out and is what stands
after the last colon; `\\(` and `\\)` are letters; square brackets are text. `embedding:name` names an embedding, up to
the next space, and needs a space or nothing before it.
"""

import bisect
import re
from collections.abc import Iterator
from typing import NamedTuple

from sdjax.text.grammar import ROUND, Problem, Span

# How often brackets are taken off a text whose brackets are unbalanced, as ComfyUI does.
_PEELED = 64
# Longer texts after a colon are no numbers.
_LONGEST_NUMBER = 100
# What stands before the name of an embedding.
EMBEDDING = "embedding:"


class Parsed(NamedTuple):
    """What `parse` gives: the spans that are not empty, in order."""

    spans: tuple[Span, ...]
    problems: tuple[Problem, ...]


_TOKEN = re.compile(r"\\[()]|[():]|[^\\():]+|\\")


def parse(text: str) -> Parsed:
    """Reads a prompt; any string at all."""
    if "(" not in text and ")" not in text:
        return Parsed((Span(text, 1.0),) if text else (), ())
    tokens = [(match.group(), match.start()) for match in _TOKEN.finditer(text)]
    reader = _Reader(text, tokens)
    return Parsed(tuple(reader.spans(0, len(text), 1.0)), tuple(sorted(reader.problems)))


class _Reader:
    def __init__(self, text: str, tokens: list[tuple[str, int]]) -> None:
        self.text = text
        self.signs = [(token, at) for token, at in tokens if token in ("(", ")")]
        self.sign_places = [at for _, at in self.signs]
        self.colons = [at for token, at in tokens if token == ":"]
        self.problems: list[Problem] = []

    def spans(self, start: int, stop: int, weight: float) -> Iterator[Span]:
        """What stands between two places; brackets that are never closed are text."""
        for peeled in range(_PEELED + 1):
            level = 0
            opened: list[tuple[int, float, int]] = []  # where, the weight outside, where the text inside ends
            item = start
            loose = start
            closings = self._closings(start, stop)
            for sign, at in self._signs(start, stop):
                if level < 0:
                    level += 1 if sign == "(" else -1
                elif sign == "(":
                    end = closings.get(at)
                    if end is None and not opened:
                        loose = at
                        break
                    yield from self._plain(item, at, weight)
                    assert end is not None
                    inner, content = self._weight(at, end, weight)
                    opened.append((end, weight, content))
                    weight, item = inner, at + 1
                elif opened:
                    end, outside, content = opened.pop()
                    yield from self._plain(item, content, weight)
                    weight, item = outside, at + 1
                else:
                    level = -1
                    self.problems.append(_problem(at, ")"))
            else:
                yield from self._plain(item, stop, weight)
                return
            yield from self._plain(item, loose, weight)
            self.problems.append(_problem(loose, "("))
            if self.text[stop - 1] != ")" or stop - 1 == loose or self._escaped(stop - 1) or peeled == _PEELED:
                yield from self._plain(loose, stop, weight)
                return
            weight, content = self._weight(loose, stop - 1, weight)
            start, stop = loose + 1, content

    def _signs(self, start: int, stop: int) -> list[tuple[str, int]]:
        return self.signs[bisect.bisect_left(self.sign_places, start) : bisect.bisect_left(self.sign_places, stop)]

    def _closings(self, start: int, stop: int) -> dict[int, int]:
        """Where the brackets close which are closed."""
        closings = {}
        stack: list[int] = []
        surplus = 0
        for sign, at in self._signs(start, stop):
            if surplus:
                surplus += -1 if sign == "(" else 1
            elif sign == "(":
                stack.append(at)
            elif stack:
                closings[stack.pop()] = at
            else:
                surplus = 1
        return closings

    def _weight(self, start: int, end: int, weight: float) -> tuple[float, int]:
        """The weight in a pair of brackets, and where the text that has it ends."""
        index = bisect.bisect_left(self.colons, end) - 1
        colon = self.colons[index] if index >= 0 else -1
        if colon <= start:
            return weight * ROUND, end
        number = _number(self.text[colon + 1 : min(end, colon + 2 + _LONGEST_NUMBER)])
        if colon > start + 1 and number is not None:
            return number, colon
        # Else it is of brackets further in, or names an embedding.
        if self.text.find(")", colon, end) < 0 and not self.text.endswith(EMBEDDING, start, colon + 1):
            told = self.text[colon + 1 : end]
            told = repr(told if len(told) <= 20 else told[:20] + "...")
            self.problems.append(
                Problem(colon + 1, f"the weight {told} is no number; write one like 1.2, or \\( and \\) for the signs")
            )
        return weight * ROUND, end

    def _plain(self, start: int, stop: int, weight: float) -> Iterator[Span]:
        if start < stop:
            yield Span(_ESCAPED.sub(r"\1", self.text[start:stop]), weight)

    def _escaped(self, at: int) -> bool:
        return at > 0 and self.text[at - 1] == "\\"


_ESCAPED = re.compile(r"\\([()])")


class Divided(NamedTuple):
    """A part of a span: the word that names an embedding, if one does, and the text behind it."""

    named: str | None
    text: str


def divide(text: str) -> Iterator[Divided]:
    """The text of a span, divided before each embedding that it names."""
    first, *others = _BEFORE_EMBEDDING.split(text)
    if first.startswith(EMBEDDING):
        others.insert(0, first)
    elif first:
        yield Divided(None, first)
    for other in others:
        named, text = [*other.removeprefix(EMBEDDING).split(None, 1), "", ""][:2]
        yield Divided(named, text)


_BEFORE_EMBEDDING = re.compile(f"[ \n](?={EMBEDDING})")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _problem(at: int, sign: str) -> Problem:
    verb = "is never closed" if sign == "(" else "closes nothing"
    return Problem(at + 1, f"{sign} {verb}; write \\{sign} for the sign itself")
