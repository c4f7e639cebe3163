"""AUTOMATIC1111's prompt grammar.

A prompt is read in the order in which the web UI reads it (`modules/prompt_parser.py`, version 1.10):

  1. `AND` splits it into parts; a part may end in its weight: `a cat :1.2 AND a dog`.
  2. In each part `[before:after:when]` switches once and `[a|b|c]` at every step; see `prompt_editing`.
  3. In the text of a step `(more)`, `[less]` and `(this much:1.3)` are weights and `BREAK` starts a chunk; see
     `emphasis`.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sdjax.text.a1111_brackets import bracket_problems
from sdjax.text.chunks import Chunk, ChunkFilling
from sdjax.text.emphasis import BREAK, weigh
from sdjax.text.problems import Problem, shortened
from sdjax.text.prompt_editing import (
    Pass,
    Piece,
    PlacedSwitch,
    boundaries,
    plain_number,
    print_pieces,
    read_groups,
    resolve,
    step_problems,
)
from sdjax.text.prompt_tokenizer import FIRST_VECTOR, PromptTokenizer
from sdjax.text.readings import (
    MAX_CHUNKS,
    MAX_CHUNKS_OF_TEXTS,
    MAX_LETTERS_OF_TEXTS,
    MAX_PARTS,
    MAX_TEXTS_OF_STEPS,
    Branch,
    ReadPrompt,
    WeightedReadings,
    check_limit,
    fill,
    reading_of,
)
from sdjax.text.tags import cut, look_alikes, uncut
from sdjax.text.tokenizer import Tokenizer


class Part(NamedTuple):
    """What stands between two `AND`."""

    pieces: tuple[Piece, ...]
    weight: float


class Prompt(NamedTuple):
    """A prompt that was read; `to_text` prints it. A negative one has one part, whose weight is 1."""

    parts: tuple[Part, ...]
    negative: bool


class Parsed(NamedTuple):
    """What `parse` gives; the switches are listed for `step_problems`."""

    prompt: Prompt
    problems: tuple[Problem, ...]
    switches: tuple[PlacedSwitch, ...]


def parse(text: str, *, negative: bool = False) -> Parsed:
    """Reads a prompt.

    Args:
      text: any string at all; what can't be read stays text, as in the web UI, and is reported.
      negative: whether it is a negative prompt, in which `AND` is a word.
    """
    parts: list[Part] = []
    problems: list[Problem] = []
    switches: list[PlacedSwitch] = []
    cuts = [] if negative or "AND" not in text else [match.span() for match in _AND.finditer(text)]
    starts, stops = (0, *(stop for _, stop in cuts)), (*(start for start, _ in cuts), len(text))
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        part, weight = (text[start:stop], 1.0) if negative else _part_weight(text[start:stop])
        if cuts and not part.strip():
            letter = cuts[max(0, index - 1)][0] + 1
            problems.append(Problem(letter, "an AND has nothing beside it; take it away, or write what it adds"))
        if weight != 1 and math.isfinite(weight) and not cuts:
            ending = text[len(part) : stop].strip()
            message = (
                f"{ending!r} at the end is the weight of the whole prompt; if not meant, write a full stop behind it"
            )
            problems.append(Problem(len(part) + 1, message))
        odd = _ODD_PART_WEIGHT.fullmatch(part.rpartition(":")[2]) if cuts and ":" in part else None
        if odd:
            message = (
                f"the weight {shortened(odd[0].strip())} of this part is no number and is read as text; write 1.2 or -1"
            )
            problems.append(Problem(start + part.rindex(":") + 1, message))
        if not math.isfinite(weight):
            problems.append(Problem(stop, "the weight of this part of the prompt is no finite number"))
            weight = math.copysign(np.finfo(np.float64).max.item(), weight)
        groups = read_groups(part, start)
        parts.append(Part(groups.pieces, weight))
        switches += [PlacedSwitch(start + at + 1, when) for at, when in groups.switches]
        problems += [Problem(start + at + 1, message) for at, message in bracket_problems(part, groups)]
    return Parsed(Prompt(tuple(parts), negative), tuple(dict.fromkeys(problems)), tuple(switches))


def to_text(prompt: Prompt) -> str:
    """Prints a prompt; reading it again (as the same kind) gives the same prompt."""
    printed = []
    for part in prompt.parts:
        text = print_pieces(part.pieces)
        # A text that ends like a weight keeps its end only if a weight follows.
        if part.weight != 1 or (not prompt.negative and _part_weight(text)[0] != text):
            text += f":{plain_number(part.weight)}"
        printed.append(text)
    return " AND".join(printed)


# --- AND ---

_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")
# What was probably meant for one: with a comma, a space behind its sign, or a minus that no number has.
_ODD_PART_WEIGHT = re.compile(
    r"\s*(?:[-+\u2212]?\s*[0-9]*,[0-9]+|[-+\u2212]\s+\.?[0-9][0-9.]*|\u2212\.?[0-9][0-9.]*)\s*"
)


def _part_weight(part: str) -> tuple[str, float]:
    """A part without the weight at its end, and that weight."""
    part = part.rstrip()
    text, colon, weight = part.rpartition(":")
    if colon and _PART_WEIGHT.fullmatch(weight.lstrip()):
        return text.rstrip(), float(weight)
    return part, 1.0


# --- Chunks ---

# How far back the web UI looks for a comma at which to end a chunk, in tokens: its setting's default.
COMMA_BACK_OFF = 20


def a1111_chunks(prompt_tokenizer: PromptTokenizer, text: str) -> tuple[list[Chunk], int]:
    """The chunks of a resolved text, and how many tokens it has; an embedding counts as many as it has vectors.

    As `tokenize_line` of the web UI (`modules/sd_hijack_clip.py`, version 1.10): a chunk that is full ends at its last
    comma if that is near, `BREAK` ends it at once, and what is left of it is padding. An embedding for which there is
    no room starts the next chunk. (Where such a comma takes an embedding to the next chunk, the web UI leaves its
    vectors behind, and reads `!` in their place. Here they go with the text.)
    """
    tokenizer = prompt_tokenizer.tokenizer
    filling = ChunkFilling(tokenizer)
    room = filling.room
    comma = -1
    total = 0
    for span in weigh(text):
        if span == BREAK:
            filling.end(len(filling.ids))
            comma = -1
            continue
        for ids in _a1111_groups(prompt_tokenizer, span.text):
            if ids[0] == tokenizer.comma:
                comma = len(filling.ids)
            elif len(filling.ids) == room and comma != -1 and room - comma <= COMMA_BACK_OFF:
                filling.end(comma + 1)
                comma = -1
            if filling.ids and len(filling.ids) + len(ids) > room:
                filling.end(room)
                comma = -1
            for start in range(0, len(ids), room):  # only an embedding that fits in no chunk is divided
                if start:
                    filling.end(room)
                filling.add(ids[start : start + room], span.weight)
            total += len(ids)
    if filling.ids or not filling.chunks:
        filling.end(room)
    return [_padded_after_end(tokenizer, chunk) for chunk in filling.chunks], total


def _a1111_groups(prompt_tokenizer: PromptTokenizer, text: str) -> Iterator[Sequence[int]]:
    """The ids of a span: of each embedding, and of each token between them."""
    for piece, name, open_ in prompt_tokenizer.split_at_angled(text):
        if name is not None:
            yield prompt_tokenizer.embedding_ids(name)
            continue
        tokens = prompt_tokenizer.tokenizer.encode(piece)
        position = 0
        while position < len(tokens):
            found = prompt_tokenizer.embedding_at(tokens, position) if open_ else None
            yield [tokens[position]] if found is None else prompt_tokenizer.embedding_ids(found.name)
            position += 1 if found is None else found.length


def _padded_after_end(tokenizer: Tokenizer, chunk: Chunk) -> Chunk:
    """The chunk with padding after its first end, even where a prompt has an end token in it."""
    if tokenizer.end == tokenizer.padding:
        return chunk
    first = chunk.ids.index(tokenizer.end) + 1
    # Vectors are put in after that.
    rest = tuple(index if index >= FIRST_VECTOR else tokenizer.padding for index in chunk.ids[first:])
    return Chunk(chunk.ids[:first] + rest, chunk.weights)


# --- Branches ---


def read_a1111(prompt_tokenizer: PromptTokenizer, prompt: str, negative: bool, span: Pass) -> ReadPrompt:
    """Reads a prompt: a branch for each part, whose texts are those of the steps."""
    plain, problems = cut(prompt), []
    if negative:  # there the web UI takes tags for text
        message = "in a negative prompt an adapter is read as text; name it in the prompt, maybe with a weight below 0"
        problems = [Problem(letter, message) for letter in plain.letters]
        plain = uncut(prompt)
    else:
        message = (
            "this looks like an adapter and is read as text; expected <lora:name:weight>, closed and without spaces"
        )
        problems = [Problem(plain.letter(letter), message) for letter in look_alikes(plain.text)]
    problems += [Problem(letter, message) for letter, message in plain.problems]
    parsed = parse(plain.text, negative=negative)
    for letter, message in (*parsed.problems, *step_problems(parsed.switches, span)):
        problems.append(Problem(plain.letter(letter), message))
    check_limit("what AND joins", len(parsed.prompt.parts), MAX_PARTS, "parts")
    signs = sum(not isinstance(piece, str) for part in parsed.prompt.parts for piece in part.pieces)
    check_limit("step switches and alternations", signs, MAX_TEXTS_OF_STEPS, "brackets, bars and colons of theirs")
    branches = tuple(_a1111_branch(prompt_tokenizer, part, span) for part in parsed.prompt.parts)
    return ReadPrompt(branches, tuple(problems), plain.tags)


def _a1111_branch(prompt_tokenizer: PromptTokenizer, part: Part, span: Pass) -> Branch:
    """A part, all of whose texts have as many chunks as the longest: the web UI encodes them as one batch."""
    known: dict[str, WeightedReadings] = {}
    ends: list[int] = []
    sums: list[WeightedReadings] = []
    letters = 0
    for end in boundaries(part.pieces, span):
        text = resolve(part.pieces, end, span)
        if text not in known:
            letters += len(text)
            check_limit("texts in all its steps together", letters, MAX_LETTERS_OF_TEXTS, "letters")
            chunks, tokens = a1111_chunks(prompt_tokenizer, text)
            check_limit("a text", len(chunks), MAX_CHUNKS, f"chunks of {prompt_tokenizer.tokenizer.length - 2} tokens")
            known[text] = WeightedReadings(((reading_of(chunks), 1.0),), tokens, "")
        ends.append(end)
        sums.append(known[text])
    check_limit(
        "texts in all its steps together", len(known) * max(text.chunks for text in sums), MAX_CHUNKS_OF_TEXTS, "chunks"
    )
    branch = Branch(tuple(ends), tuple(sums), part.weight)
    return branch if len(known) == 1 else fill(branch, max(text.chunks for text in sums), prompt_tokenizer.tokenizer)
