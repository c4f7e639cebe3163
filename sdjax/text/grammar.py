"""AUTOMATIC1111's prompt grammar: `AND`, step switches, alternation, weights and `BREAK`.

A prompt is read in the order in which the web UI reads it (`modules/prompt_parser.py`, version 1.10):

  1. `AND` splits it into parts; a part may end in its weight: `a cat :1.2 AND a dog`.
  2. In each part `[before:after:when]` switches once and `[a|b|c]` at every step; `resolve` gives the text of a step.
  3. In that text `(more)`, `[less]` and `(this much:1.3)` are weights and `BREAK` starts a chunk; `weigh` gives both.

The web UI reads the second with a parser of ambiguous grammars. Where brackets are unbalanced, what it does can change
from one start to the next; here every group that is well formed is read, which is always one of its readings.

A part is kept as a flat row of pieces, so no depth of brackets is too deep to be read, compared or printed.
"""

import bisect
import decimal
import enum
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# What a plain bracket does: `(more)` and `[less]`.
ROUND, SQUARE = 1.1, 1 / 1.1
# Any larger number of a step, or fraction of the steps, means the same: never.
_NEVER = 1_000_000_000


class Problem(NamedTuple):
    """Something that can't be read as it was probably meant.

    letter: where, counted from 1.
    message: what is wrong, and what to do.
    """

    letter: int
    message: str


class Switch(NamedTuple):
    """Opens `[before:after:when]`: its two branches follow, each ended by a `Mark`.

    when: the last step that sees `before`, as a number (int), or as a fraction of all steps (float).
    """

    when: int | float


class Alternate(NamedTuple):
    """Opens `[a|b|c]`: its options follow, each ended by a `Mark`; every step takes the next one."""

    options: int


class Mark(enum.Enum):
    """Ends a branch of the group that was opened last: another one follows, or the group is over."""

    NEXT = enum.auto()
    END = enum.auto()


Piece = str | Switch | Alternate | Mark


class Part(NamedTuple):
    """What stands between two `AND`."""

    pieces: tuple[Piece, ...]
    weight: float


class Prompt(NamedTuple):
    """A prompt that was read; `to_text` prints it. A negative one has one part, whose weight is 1."""

    parts: tuple[Part, ...]
    negative: bool


class Placed(NamedTuple):
    """A switch and its letter, counted from 1."""

    letter: int
    when: int | float


class Parsed(NamedTuple):
    """What `parse` gives; the switches are listed for `step_problems`."""

    prompt: Prompt
    problems: tuple[Problem, ...]
    switches: tuple[Placed, ...]


class Span(NamedTuple):
    """A text in which every token has one weight."""

    text: str
    weight: float


# The span which starts a chunk. That weights multiply it too, and it is a word when they do, is the web UI's rule.
BREAK = Span("BREAK", -1.0)


def parse(text: str, *, negative: bool = False) -> Parsed:
    """Reads a prompt.

    Args:
      text: any string at all; what can't be read stays text, as in the web UI, and is told.
      negative: whether it is a negative prompt, in which `AND` is a word.
    """
    parts: list[Part] = []
    problems: list[Problem] = []
    switches: list[Placed] = []
    cuts = [] if negative or "AND" not in text else [match.span() for match in _AND.finditer(text)]
    starts, stops = (0, *(stop for _, stop in cuts)), (*(start for start, _ in cuts), len(text))
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        part, weight = (text[start:stop], 1.0) if negative else _part_weight(text[start:stop])
        if cuts and not part.strip():
            letter = cuts[max(0, index - 1)][0] + 1
            problems.append(Problem(letter, "an AND has nothing beside it; take it away, or write what it adds"))
        if weight != 1 and math.isfinite(weight) and not cuts:
            ending = text[len(part) : stop].strip()
            told = f"{ending!r} at the end is the weight of the whole prompt; if not meant, write a full stop behind it"
            problems.append(Problem(len(part) + 1, told))
        odd = _ODD_PART_WEIGHT.fullmatch(part.rpartition(":")[2]) if cuts and ":" in part else None
        if odd:
            told = f"the weight {_short(odd[0].strip())} of this part is no number and is read as text; write 1.2 or -1"
            problems.append(Problem(start + part.rindex(":") + 1, told))
        if not math.isfinite(weight):
            problems.append(Problem(stop, "the weight of this part of the prompt is no finite number"))
            weight = math.copysign(np.finfo(np.float64).max.item(), weight)
        groups = _read_groups(part, start)
        parts.append(Part(groups.pieces, weight))
        switches += [Placed(start + at + 1, when) for at, when in groups.switches]
        problems += [Problem(start + at + 1, message) for at, message in _bracket_problems(part, groups)]
    return Parsed(Prompt(tuple(parts), negative), tuple(dict.fromkeys(problems)), tuple(switches))


def to_text(prompt: Prompt) -> str:
    """Prints a prompt; reading it again (as the same kind) gives the same prompt."""
    printed = []
    for part in prompt.parts:
        text = _print_pieces(part.pieces)
        # A text that ends like a weight keeps its end only if a weight follows.
        if part.weight != 1 or (not prompt.negative and _part_weight(text)[0] != text):
            text += f":{_plain_number(part.weight)}"
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


def _plain_number(number: float) -> str:
    """The shortest digits that read as this number, without an exponent."""
    return format(decimal.Decimal(repr(number)), "f")


# --- Step switches and alternation ---

# Plain text, with whatever a backslash escapes, or one sign. A backslash at the end of a line escapes nothing, and
# neither sign nor text can take it.
_GROUP_TOKEN = re.compile(r"(?:[^\\\[\]():|]+|\\.)+|[\[\]():|]")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")


class _Groups(NamedTuple):
    """What `_read_groups` gives.

    read: where the brackets of switches and alternations open.
    switches: where, and when.
    hindrance: why no group at all is read, or empty.
    """

    pieces: tuple[Piece, ...]
    read: frozenset[int]
    switches: tuple[tuple[int, int | float], ...]
    hindrance: str


class _Frame:
    """A bracket that is open."""

    def __init__(self, sign: str, token: int) -> None:
        self.sign, self.token = sign, token
        self.colons: list[int] = []
        self.pipes: list[int] = []


def _read_groups(text: str, offset: int) -> _Groups:
    """Finds what is well formed of `[before:after:when]` and `[a|b]` in a part, which starts at `offset`."""
    if "[" not in text:
        return _Groups((text,) if text else (), frozenset(), (), "")
    tokens: list[str] = []
    starts: list[int] = []
    at = 0
    while at < len(text):
        match = _GROUP_TOKEN.match(text, at)
        if match is None:
            return _Groups((text,), frozenset(), (), "a \\ at the end of a line, which escapes nothing, takes it away")
        tokens.append(match.group())
        starts.append(at)
        at = match.end()

    # What stands in place of tokens; None where a token is left out.
    marks: dict[int, tuple[Piece, ...]] = {}
    switches: list[tuple[int, int | float]] = []
    read: set[int] = set()
    stack: list[_Frame] = []
    loose_pipe: int | None = None  # the first that is in no group
    for index, token in enumerate(tokens):
        if token in ("[", "("):
            stack.append(_Frame(token, index))
        elif token == ":" and stack:
            stack[-1].colons.append(index)
        elif token == "|":
            if stack:
                stack[-1].pipes.append(index)
            elif loose_pipe is None:
                loose_pipe = index
        elif token in ("]", ")"):
            if not stack or (stack[-1].sign == "[") != (token == "]"):
                loose_pipe = _give_up(stack, loose_pipe)
                continue
            frame = stack[-1]
            if token == ")":
                if frame.pipes or len(frame.colons) > 1:
                    loose_pipe = _give_up(stack, loose_pipe)
                else:
                    stack.pop()
            elif frame.pipes and not frame.colons:
                stack.pop()
                read.add(starts[frame.token])
                marks[frame.token] = (Alternate(len(frame.pipes) + 1),)
                marks |= dict.fromkeys(frame.pipes, (Mark.NEXT,))
                marks[index] = (Mark.END,)
            elif frame.colons and not frame.pipes:
                last = frame.colons[-1]
                when = _when(text[starts[last] + 1 : starts[index]]) if len(frame.colons) <= 2 else None
                if when is None:
                    loose_pipe = _give_up(stack, loose_pipe)
                    continue
                stack.pop()
                read.add(starts[frame.token])
                switches.append((starts[frame.token], when))
                alone = len(frame.colons) == 1
                marks[frame.token] = (Switch(when), Mark.NEXT) if alone else (Switch(when),)
                if not alone:
                    marks[frame.colons[0]] = (Mark.NEXT,)
                marks[last] = ()
                marks |= dict.fromkeys(range(last + 1, index), ())
                marks[index] = (Mark.END,)
            elif frame.pipes:
                loose_pipe = _give_up(stack, loose_pipe)
            else:
                stack.pop()
    loose_pipe = _give_up(stack, loose_pipe)

    if loose_pipe is not None:
        place = offset + starts[loose_pipe] + 1
        hindrance = f"the | at letter {place}, which is not between options, takes it away; write \\| there"
        return _Groups((text,), frozenset(), (), hindrance if read else "")
    pieces: list[Piece] = []
    plain: list[str] = []
    for index, token in enumerate(tokens):
        if index not in marks:
            plain.append(token)
            continue
        if plain and marks[index]:
            pieces.append("".join(plain))
            plain.clear()
        pieces += marks[index]
    if plain:
        pieces.append("".join(plain))
    return _Groups(tuple(pieces), frozenset(read), tuple(sorted(switches)), "")


def _give_up(stack: list[_Frame], loose_pipe: int | None) -> int | None:
    """Empties the stack, as what holds an ill-formed bracket is ill-formed; gives the first pipe in no group."""
    pipes = [pipe for frame in stack for pipe in frame.pipes[:1]]
    stack.clear()
    return loose_pipe if loose_pipe is not None else min(pipes, default=None)


def _when(text: str) -> int | float | None:
    """The step of a switch; None if it is no number."""
    match = _WHEN.fullmatch(text)
    if match is None:
        return None
    number = max(-_NEVER, min(_NEVER, float(match.group(1))))
    return float(number) if "." in match.group(1) else int(number)


def _print_pieces(pieces: Sequence[Piece]) -> str:
    printed: list[str] = []
    stack: list[Switch | Alternate] = []
    for piece in pieces:
        if isinstance(piece, str):
            printed.append(piece)
        elif isinstance(piece, Mark):
            opened = stack[-1]
            if piece is Mark.NEXT:
                printed.append(":" if isinstance(opened, Switch) else "|")
                continue
            stack.pop()
            if isinstance(opened, Switch):
                printed.append(f":{_print_when(opened.when)}")
            printed.append("]")
        else:
            stack.append(piece)
            printed.append("[")
    return "".join(printed)


def _print_when(when: int | float) -> str:
    """A fraction has a point in it, a number of steps has none."""
    return str(when) if isinstance(when, int) else _plain_number(when)


class Pass(NamedTuple):
    """One pass of the sampler, over whose steps a prompt switches.

    A second pass goes on where the first one ends, as in the web UI: `[a:b:1.5]` switches after half of its steps, and
    `[a:b:25]` after five if there were 20 before it. `[a|b]` begins again.

    steps: its own, at least 1.
    before: those of the pass before it; None of the first.
    followed: whether another comes after it.
    """

    steps: int
    before: int | None = None
    followed: bool = False


def last_before(when: int | float, span: Pass) -> int:
    """The last step of a pass, counted from 1, at which a switch gives what it had before."""
    if isinstance(when, float):
        return min(span.steps, int((when if span.before is None else when - 1.0) * span.steps))
    return min(span.steps, when - (span.before or 0))


def boundaries(pieces: Sequence[Piece], span: Pass) -> list[int]:
    """The steps, counted from 1 and rising, after which the text may change; the last is the last of the pass."""
    if any(isinstance(piece, Alternate) for piece in pieces):
        return list(range(1, span.steps + 1))
    ends = {last_before(piece.when, span) for piece in pieces if isinstance(piece, Switch)}
    return sorted({end for end in ends if end >= 1} | {span.steps})


def resolve(pieces: Sequence[Piece], step: int, span: Pass) -> str:
    """The text of a part at one of the steps, which are counted from 1."""
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(piece for piece in pieces if isinstance(piece, str))
    texts: list[str] = []
    stack: list[tuple[int, int, bool]] = []  # branch wanted, branch we are in, whether the group itself is seen
    seen = True
    for piece in pieces:
        if isinstance(piece, str):
            if seen:
                texts.append(piece)
        elif isinstance(piece, Mark):
            wanted, branch, outside = stack.pop()
            seen = outside
            if piece is Mark.NEXT:
                stack.append((wanted, branch + 1, outside))
                seen = outside and wanted == branch + 1
        else:
            if isinstance(piece, Switch):
                wanted = int(step > last_before(piece.when, span))
            else:
                wanted = (step - 1) % piece.options
            stack.append((wanted, 0, seen))
            seen = seen and wanted == 0
    return "".join(texts)


def text_index(ends: Sequence[int], step: int) -> int:
    """Which of the texts that end there the web UI takes for a step, which it counts from 0 here.

    So the first two steps of an alternation see its first option, and `[a:b:3]` gives `a` to four steps.
    """
    return bisect.bisect_left(ends, step)


def step_problems(switches: Sequence[Placed], span: Pass) -> Iterator[Problem]:
    """The switches of which one side is never seen, neither in these steps nor in those of another pass."""
    steps = span.steps
    for letter, when in switches:
        last = last_before(when, span)
        told = f"this switch, {_print_when(when)} of {steps} steps,"
        if span.before is not None:
            told = f"this switch, {_print_when(when)} of {span.before} steps and {steps} of the second pass,"
        if last < 1 and span.before is None:
            yield Problem(letter, f"{told} is over before the first step: its first text is never seen")
        elif last >= steps - 1 and not span.followed:
            room = f"{steps - 2} is the last step to give" if steps > 2 else "so few steps leave no room for a switch"
            if span.before is not None:
                room = f"{span.before + steps - 2} is the last step to give" if steps > 2 else room
            yield Problem(letter, f"{told} comes after the last step: its second text is never seen; {room}")


# --- Weights ---

_WEIGHT_TOKEN = re.compile(r"\\[()\[\]\\]?|[(\[\])]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")
_SPECIAL = re.compile(r"[\\()\[\]]|BREAK")


def weigh(text: str) -> tuple[Span, ...]:
    r"""The spans of a resolved text, in order; those equal to `BREAK` start a chunk.

    Weights are products of floats in the web UI's order: of the brackets that are closed, the inner ones first. A
    bracket that is never closed reaches to the end. `\(`, `\)`, `\[`, `\]` and `\\` are letters.
    """
    if not _SPECIAL.search(text):
        return (Span(text, 1.0),)
    texts: list[str] = []
    weights: list[float] = []
    factors: list[tuple[int, int, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    for match in _WEIGHT_TOKEN.finditer(text):
        token = match.group()
        if token[0] == "\\":
            texts.append(token[1:])
            weights.append(1.0)
        elif token in ("(", "["):
            opened[token].append(len(texts))
        elif match.group(1) and opened["("]:
            number = _number(match.group(1))
            if number is None:  # the web UI stops with an error; this is its reading of every other text there
                texts.append(token[:-1])
                weights.append(1.0)
            factors.append((opened["("].pop(), len(texts), ROUND if number is None else number))
        elif token == ")" and opened["("]:
            factors.append((opened["("].pop(), len(texts), ROUND))
        elif token == "]" and opened["["]:
            factors.append((opened["["].pop(), len(texts), SQUARE))
        else:
            for index, piece in enumerate(_split_at_breaks(token)):
                if index:
                    texts.append(BREAK.text)
                    weights.append(BREAK.weight)
                texts.append(piece)
                weights.append(1.0)
    for sign, factor in (("(", ROUND), ("[", SQUARE)):
        factors += [(start, len(texts), factor) for start in opened[sign]]

    if factors:
        products = np.array(weights)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for start, stop, factor in factors:
                products[start:stop] *= factor
        weights = products.tolist()
    return tuple(_merge(texts, weights)) or (Span("", 1.0),)


def _split_at_breaks(text: str) -> list[str]:
    """The texts around `BREAK`, without the spaces beside it."""
    if BREAK.text not in text:
        return [text]
    pieces = _BREAK.split(text)
    last = len(pieces) - 1
    for index, piece in enumerate(pieces):
        piece = piece.lstrip() if index > 0 else piece
        pieces[index] = piece.rstrip() if index < last else piece
    return pieces


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _merge(texts: Sequence[str], weights: Sequence[float]) -> Iterator[Span]:
    """Joins neighbours of the same weight."""
    start = 0
    for stop in range(1, len(texts) + 1):
        if stop == len(texts) or weights[stop] != weights[start]:
            yield Span("".join(texts[start:stop]), weights[start])
            start = stop


# --- What is wrong ---

_CLOSING = {"(": ")", "[": "]"}
_OPENING = {")": "(", "]": "["}
_COMMA_NUMBER = re.compile(r"\s*([+-]?\d+),(\d+)\s*")
_CHECK_TOKEN = re.compile(r"\\.|[()\[\]:|]|[^\\()\[\]:|]+|\\", re.DOTALL)


class _Open(_Frame):
    """A bracket that is open, with the `BREAK`s in it."""

    def __init__(self, sign: str, at: int) -> None:
        super().__init__(sign, at)
        self.breaks: list[int] = []


def _bracket_problems(text: str, groups: _Groups) -> list[tuple[int, str]]:
    """What is wrong with the brackets of a part: places, counted from 0, and messages."""
    problems: list[tuple[int, str]] = []
    stack: list[_Open] = []
    depth = {"(": 0, "[": 0}

    if not _SPECIAL.search(text):
        return problems
    for match in _CHECK_TOKEN.finditer(text):
        token, at = match.group(), match.start()
        if token in ("(", "["):
            stack.append(_Open(token, at))
            depth[token] += 1
        elif token in _OPENING:
            sign = _OPENING[token]
            if not depth[sign]:
                problems.append(
                    (at, f"{token} closes nothing; open it with {sign}, or write \\{token} for the sign itself")
                )
                continue
            while stack[-1].sign != sign:
                depth[stack[-1].sign] -= 1
                problems.append(_never_closed(stack.pop()))
            frame = stack.pop()
            depth[sign] -= 1
            factor, problem = _closed(text, frame, at, groups)
            problems += problem
            if factor != 1:
                problems += [
                    (place, "a BREAK in weighted brackets is a word, not a break; close the brackets before it")
                    for place in frame.breaks
                ]
            elif stack:
                stack[-1].breaks += frame.breaks
        elif stack:
            if token == ":":
                stack[-1].colons.append(at)
            elif token == "|":
                stack[-1].pipes.append(at)
            elif BREAK.text in token:
                stack[-1].breaks += [at + found.start() for found in _BREAK.finditer(token)]
    return sorted([*problems, *map(_never_closed, stack)])


def _never_closed(frame: _Open) -> tuple[int, str]:
    sign = frame.sign
    return frame.token, f"{sign} is never closed; close it with {_CLOSING[sign]}, or write \\{sign} for the sign itself"


def _closed(text: str, frame: _Open, end: int, groups: _Groups) -> tuple[float, list[tuple[int, str]]]:
    """By how much a pair of brackets multiplies weights, and what is wrong with it."""
    if frame.sign == "(":
        if not frame.colons:
            return ROUND, []
        last = frame.colons[-1]
        match = _WEIGHT_TOKEN.match(text, last)
        weight = _number(match.group(1)) if match and match.group(1) and match.end() == end + 1 else None
        if weight is None:
            given = text[last + 1 : end]
            comma = _COMMA_NUMBER.fullmatch(given)
            hint = f"{comma[1]}.{comma[2]}" if comma else "a number like 1.2"
            return ROUND, [
                (last, f"the weight {_short(given)} is no number; write {hint}, or \\( and \\) for the signs")
            ]
        return weight, []
    if frame.token in groups.read:
        return 1.0, []
    if not frame.colons and not frame.pipes:
        return SQUARE, []
    if groups.hindrance:
        reason = groups.hindrance
    elif frame.colons and frame.pipes:
        reason = "it has both : and |; write [before:after:step] or [one|other]"
    elif len(frame.colons) > 2:
        reason = "it has too many :; write [before:after:step]"
    elif frame.colons and _when(text[frame.colons[-1] + 1 : end]) is None:
        reason = f"{_short(text[frame.colons[-1] + 1 : end])} is no step; write a number like 5, or a fraction like 0.5"
    else:
        reason = "a bracket in it is not well formed"
    return SQUARE, [(frame.token, f"this [ ] does not switch: {reason}; for the signs themselves write \\[ and \\]")]


def _short(text: str) -> str:
    """A text to be quoted."""
    return repr(text if len(text) <= 20 else text[:20] + "...")
