"""Compel's prompt syntax: `word++`, `(some words)1.3`, `("one", "other").blend(1, 2)` and `("one", "other").and()`.

Where the package (compel 2.5) stops with an error, the prompt is read as words, and the problem is reported.
"""

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sdjax.diffusion import elementary
from sdjax.text.chunks import Chunk, make_chunk
from sdjax.text.compel_grammar import (
    EMPTY,
    SPACES,
    CompelError,
    CompelReader,
    Fragment,
    Part,
    ProblemList,
    fuse,
    part_of,
    parts_of,
)
from sdjax.text.problems import Problem, shortened
from sdjax.text.prompt_editing import Pass
from sdjax.text.prompt_tokenizer import PromptTokenizer
from sdjax.text.readings import (
    MAX_CHUNKS,
    MAX_CHUNKS_OF_TEXTS,
    Branch,
    Reading,
    ReadPrompt,
    WeightedReadings,
    check_limit,
    reading_of,
    tags_as_text,
)
from sdjax.text.tags import Tag

# Brackets in brackets. The package's own limit is Python's recursion, and its time grows with the power of the depth.
DEEPEST = 20

OPERATORS = ("attend", "swap", "blend", "and", "add")
# Compel takes lesser weights for this one, at which almost nothing is left.
_LEAST_WEIGHT = 1e-5


class Parsed(NamedTuple):
    """What `parse` gives; there is always a part. The tags are what `withLora` names, in order."""

    parts: tuple[Part, ...]
    problems: tuple[Problem, ...]
    tags: tuple[Tag, ...]


def parse(text: str) -> Parsed:
    """Reads a prompt; any string at all."""
    spaced, inserted = _space_after_commas(text)
    if not spaced.strip():
        return Parsed(EMPTY, (), ())
    problems = ProblemList(inserted)
    for at, message in _loose_brackets(spaced):
        problems.add(at, message)
    for match in _CALL.finditer(spaced):
        if match[1] not in OPERATORS:
            near = difflib.get_close_matches(match[1], OPERATORS, 1)
            hint = f"did you mean .{near[0]}()?" if near else f"there are .{'(), .'.join(OPERATORS)}()"
            problems.add(match.start(1) - 1, f".{match[1]}() is no operator; {hint}")
    for match in _ODD_WEIGHT.finditer(text):
        weight = match[1].strip()[:20]
        message = f"{weight!r} is no weight here but text, or text in part; write )1.2 for one, or put a word before it"
        problems.found.append(Problem(match.start(1) + 1, message))
    if _depth(spaced) > DEEPEST:
        problems.add(0, f"more than {DEEPEST} brackets are open at once, so all of it is read as words")
        return Parsed((part_of(fuse([Fragment(" ".join(spaced.split()), 1.0)])),), tuple(problems.found), ())

    reader = CompelReader(spaced)
    try:
        parts = reader.whole(problems)
    except CompelError as error:
        problems.add(0, f"{error}; it is read as words")
        reader = CompelReader(spaced)
        parts = parts_of(reader.prompt(0)[0])
    if not problems.found:  # which may be why words fitted nothing
        for at, word in reader.free_words:
            _add_free_word(at, word, problems)
    for at, what in reader.unknown:
        problems.add(at, what)
    return Parsed(parts, tuple(sorted(set(problems.found))), tuple(tag for _, tag in sorted(reader.loras.items())))


def _add_free_word(at: int, word: str, problems: ProblemList) -> None:
    """A problem if a word that no rule fits looks like syntax."""
    bracket = _BRACKET.search(word)
    if word.startswith((".blend(", ".and(", ".add(")):
        problems.add(
            at, f"{word.partition('(')[0]}() has to follow the brackets around a whole prompt; here it is text"
        )
    elif bracket:
        sign, given = bracket[1], shortened(word)
        problems.add(
            at + bracket.start(1), f"the {sign} in {given} is text, not syntax; write \\{sign} if it is meant to be"
        )


# --- Text before it is read ---

_CALL = re.compile(r'[)"]\s*\.([A-Za-z_]+)\s*\(')
# A weight with a space before it, a comma in it, or a sign that is taken for `+` or `-` alone.
_ODD_WEIGHT = re.compile(
    r"(?<!\\)\)([ \t]+[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?![^\s,)])|[-+]*[0-9]+,[0-9]+|[-+]+\.?[0-9][0-9.]*)"
)
_BRACKET = re.compile(r"(?<!\\)([()])")


def _space_after_commas(text: str) -> tuple[str, list[int]]:
    """The text with a space after each comma that has none, and where spaces were put in, counted in the new text.

    The letter after a comma is skipped, so of two commas only the first gets a space.
    """
    pieces: list[str] = []
    inserted: list[int] = []
    done = 0
    for match in re.finditer(r",\S", text):
        pieces.append(text[done : match.start() + 1])
        inserted.append(match.start() + 1 + len(inserted))
        pieces.append(" ")
        done = match.start() + 1
    pieces.append(text[done:])
    return "".join(pieces).translate(SPACES), inserted


def _loose_brackets(text: str) -> Iterator[tuple[int, str]]:
    """Brackets without a partner."""
    stack: list[int] = []
    for match in _BRACKET.finditer(text):
        if match[1] == "(":
            stack.append(match.start(1))
        elif stack:
            stack.pop()
        else:
            yield match.start(1), ") closes nothing; open it with (, or write \\) for the sign itself"
    for at in stack:
        yield at, "( is never closed; close it with ), or write \\( for the sign itself"


def _depth(text: str) -> int:
    """How many brackets are open at once, those that are never closed included."""
    steps = (1 if match[1] == "(" else -1 for match in _BRACKET.finditer(text))
    return max(itertools.accumulate(steps, lambda depth, step: max(0, depth + step), initial=0))


# --- Chunks ---


class _MaskedChunk(NamedTuple):
    """A chunk, and which of its tokens may be attended to."""

    chunk: Chunk
    mask: tuple[bool, ...] | None


class _WeightedChunks(NamedTuple):
    """A weighted sum of chunks, which becomes one chunk of a text."""

    mix: tuple[tuple[_MaskedChunk, float], ...]
    tokens: int
    cut: str


def read_compel(prompt_tokenizer: PromptTokenizer, prompt: str, negative: bool, span: Pass) -> ReadPrompt:
    """Reads a prompt into one branch of one text: a sum of readings whose chunks are the parts of a conjunction."""
    parsed = parse(prompt)
    check_limit("what .and() joins", len(parsed.parts), MAX_CHUNKS, "prompts")
    rows: list[_WeightedChunks] = []
    for part in parsed.parts:
        rows.append(_weighted_chunks(prompt_tokenizer, part))
        readings = 1 + sum(len(row.mix) - 1 for row in rows)
        what = "texts of .blend() and of weights below 1, each of which is encoded apart"
        check_limit(what, readings * len(parsed.parts), MAX_CHUNKS_OF_TEXTS, "chunks")
    text = WeightedReadings(
        _side_by_side(rows), sum(row.tokens for row in rows), " ".join(filter(None, (row.cut for row in rows)))
    )
    problems = (*parsed.problems, *tags_as_text(prompt))
    if negative and parsed.tags:
        message = "an adapter acts on the whole image; name it in the prompt, maybe with a weight below 0"
        problems = (*problems, Problem(prompt.find("Lora") + 1, message))
    return ReadPrompt((Branch((span.steps,), (text,), 1.0),), problems, parsed.tags)


def _weighted_chunks(prompt_tokenizer: PromptTokenizer, part: Part) -> _WeightedChunks:
    """One part of a conjunction: a sum over the prompts of a blend."""
    mix: dict[_MaskedChunk, float] = {}
    tokens, cut = 0, []
    for fragments, share in part.sum:
        rows, ids = _masked_chunks(prompt_tokenizer, fragments)
        for row, of_row in rows:
            weighted = tuple(weight * part.weight for weight in row.chunk.weights)
            key = row._replace(chunk=row.chunk._replace(weights=weighted))
            mix[key] = mix.get(key, 0.0) + of_row * share
        tokens = max(tokens, len(ids))
        cut.append(prompt_tokenizer.decode(ids[prompt_tokenizer.tokenizer.length - 2 :]))
    return _WeightedChunks(tuple(mix.items()), tokens, " ".join(filter(None, cut)))


def _masked_chunks(
    prompt_tokenizer: PromptTokenizer, fragments: Sequence[Fragment]
) -> tuple[list[tuple[_MaskedChunk, float]], list[int]]:
    """The chunk of a prompt, and the same without each fragment that weighs less than 1; and all tokens.

    As `get_embeddings_for_weighted_prompt_fragments` of the package: the less a fragment weighs, the more weighs the
    encoding in which nothing attends to it.
    """
    tokenizer = prompt_tokenizer.tokenizer
    room = tokenizer.length - 2
    ids: list[int] = []
    weights: list[float] = []
    without: list[tuple[int, int, float]] = []
    for text, weight in fragments:
        tokens = prompt_tokenizer.encode(text)
        # The package cuts each fragment, and then their row.
        first, last = 1 + len(ids), len(ids) + min(len(tokens), room)
        if tokens and weight < 1 and first <= room:
            # Of a fragment that is cut, the end goes too.
            without.append((first, last if last <= room else room + 1, weight))
        ids += tokens
        weights += [weight] * len(tokens)
    chunk = make_chunk(tokenizer, ids[:room], weights[:room])
    rows = [(_MaskedChunk(chunk, None), 1.0)]
    for first, last, weight in without:
        mask = tuple(not first <= at <= last for at in range(tokenizer.length))
        rows.append((_MaskedChunk(chunk, mask), elementary.tan((1 - max(_LEAST_WEIGHT, weight)) * math.pi / 2)))
    total = sum(share for _, share in rows)
    return [(row, share / total) for row, share in rows], ids


def _side_by_side(sums: Sequence[_WeightedChunks]) -> tuple[tuple[Reading, float], ...]:
    """The sum of readings which has these sums as its chunks.

    All readings but the first differ from it in one chunk. Shares sum up to 1 in each chunk, unless there is only one.
    """
    first = [row_sum.mix[0] for row_sum in sums]
    if len(sums) == 1:
        return tuple((_reading_of_masked([row]), share) for row, share in sums[0].mix)
    others = []
    for index, row_sum in enumerate(sums):
        for row, share in row_sum.mix[1:]:
            rows = [base for base, _ in first]
            rows[index] = row
            others.append((_reading_of_masked(rows), share))
    rest = 1.0 - sum(share for _, share in others)
    return ((_reading_of_masked([row for row, _ in first]), rest), *others)


def _reading_of_masked(rows: Sequence[_MaskedChunk]) -> Reading:
    reading = reading_of([row.chunk for row in rows])
    if all(row.mask is None for row in rows):
        return reading
    return reading._replace(mask=tuple(row.mask or (True,) * len(row.chunk.ids) for row in rows))
