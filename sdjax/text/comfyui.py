"""ComfyUI's prompt grammar: `(words)` weigh 1.1 times as much, `(words:1.3)` weigh 1.3.

Reads what ComfyUI reads (`comfy/sd1_clip.py`): a number replaces the weights of brackets further out and is what stands
after the last colon; `\\(` and `\\)` are letters; square brackets are text. `embedding:name` names an embedding, up to
the next space, and needs a space or nothing before it.
"""

import bisect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sdjax.text.chunks import Chunk, ChunkFilling
from sdjax.text.emphasis import ROUND, Span
from sdjax.text.problems import Problem, shortened
from sdjax.text.prompt_editing import Pass
from sdjax.text.prompt_tokenizer import PromptTokenizer
from sdjax.text.readings import (
    LONGEST_NAME,
    MAX_CHUNKS,
    Branch,
    ReadPrompt,
    WeightedReadings,
    check_limit,
    reading_of,
    tags_as_text,
)

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
            given = shortened(self.text[colon + 1 : end])
            self.problems.append(
                Problem(colon + 1, f"the weight {given} is no number; write one like 1.2, or \\( and \\) for the signs")
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


# --- Chunks ---

# From how many tokens on ComfyUI takes a span apart to fill a chunk; shorter ones go whole into the next.
COMFYUI_LARGE = 8


def comfyui_chunks(prompt_tokenizer: PromptTokenizer, spans: Sequence[Span]) -> tuple[list[Chunk], int]:
    """The chunks of weighted spans, and how many tokens they have; an embedding counts as many as it has vectors.

    As `tokenize_with_weights` of ComfyUI (`comfy/sd1_clip.py`): a short span is never divided, nor are the vectors of
    an embedding if they are few. An embedding that is not there is left out.
    """
    filling = ChunkFilling(prompt_tokenizer.tokenizer)
    room = filling.room
    total = 0
    for span in spans:
        for tokens in _comfyui_groups(prompt_tokenizer, span.text):
            total += len(tokens)
            # ComfyUI itself never ends with a short span that is longer than a chunk.
            large = len(tokens) >= min(COMFYUI_LARGE, room)
            while len(filling.ids) + len(tokens) > room:
                fitting = room - len(filling.ids) if large else 0
                filling.add(tokens[:fitting], span.weight)
                tokens = tokens[fitting:]
                filling.end(room)
            filling.add(tokens, span.weight)
    filling.end(room)
    return filling.chunks, total


def _comfyui_groups(prompt_tokenizer: PromptTokenizer, text: str) -> Iterator[Sequence[int]]:
    """The ids of a span: of each embedding, and of each text between them."""
    for piece in divide(text):
        name, behind = (None, "") if piece.named is None else prompt_tokenizer.comfyui_embedding(piece.named)
        if name is not None:
            yield prompt_tokenizer.embedding_ids(name)
        yield prompt_tokenizer.tokenizer.encode(" ".join(filter(None, (behind, piece.text))))


def read_comfyui(prompt_tokenizer: PromptTokenizer, prompt: str, negative: bool, span: Pass) -> ReadPrompt:
    """Reads a prompt into one branch of one text."""
    parsed = parse(prompt)
    chunks, tokens = comfyui_chunks(prompt_tokenizer, parsed.spans)
    check_limit("a text", len(chunks), MAX_CHUNKS, f"chunks of {prompt_tokenizer.tokenizer.length - 2} tokens")
    problems = sorted([*parsed.problems, *_not_there(prompt_tokenizer, prompt, parsed.spans), *tags_as_text(prompt)])
    text = WeightedReadings(((reading_of(chunks), 1.0),), tokens, "")
    return ReadPrompt((Branch((span.steps,), (text,), 1.0),), tuple(problems))


def _not_there(prompt_tokenizer: PromptTokenizer, prompt: str, spans: Sequence[Span]) -> Iterable[Problem]:
    """What ComfyUI leaves out or takes for text, though it looks like an embedding."""
    after = 0  # each is looked for where the last one ended

    def place(sought: str) -> int:
        nonlocal after
        at = prompt.find(sought, after)
        after = after if at < 0 else at + 1
        return max(0, at) + 1

    for named, text in (piece for span in spans for piece in divide(span.text)):
        if named is not None and prompt_tokenizer.comfyui_embedding(named)[0] is None:
            if named:
                yield Problem(place(EMBEDDING + named), _no_embedding(prompt_tokenizer, named))
            else:
                message = f"{EMBEDDING} names nothing; put a name directly behind it"
                yield Problem(place(EMBEDDING), message)
        before, sign, _ = text.partition(EMBEDDING)
        if sign:
            letter = place(before + sign) + len(before)
            yield Problem(letter, f"{sign} within a word names nothing; put a space before it")


def _no_embedding(prompt_tokenizer: PromptTokenizer, named: str) -> str:
    name = named.strip(",")
    return f"there is no embedding {shortened(name, LONGEST_NAME)}{prompt_tokenizer.near_names(name[:LONGEST_NAME])}"
