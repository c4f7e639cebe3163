"""Prompt editing of AUTOMATIC1111: `[before:after:when]` switches once, `[a|b|c]` alternates from step to step.

The web UI reads these with a parser of ambiguous grammars. Where brackets are unbalanced, what it does can change from
one start to the next; here every group that is well formed is read, which is always one of its readings.

A text is kept as a flat row of pieces, so no depth of brackets is too deep to be read, compared or printed.
"""

import bisect
import decimal
import enum
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sdjax.text.problems import Problem

# Any larger number of a step, or fraction of the steps, means the same: never.
_NEVER = 1_000_000_000


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


class PlacedSwitch(NamedTuple):
    """A switch and its letter, counted from 1."""

    letter: int
    when: int | float


# --- Reading and printing ---

# Plain text, with whatever a backslash escapes, or one sign. A backslash at the end of a line escapes nothing, and
# neither sign nor text can take it.
_GROUP_TOKEN = re.compile(r"(?:[^\\\[\]():|]+|\\.)+|[\[\]():|]")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")


class Groups(NamedTuple):
    """What `read_groups` gives.

    read: where the brackets of switches and alternations open.
    switches: where, and when.
    hindrance: why no group at all is read, or empty.
    """

    pieces: tuple[Piece, ...]
    read: frozenset[int]
    switches: tuple[tuple[int, int | float], ...]
    hindrance: str


class OpenBracket:
    """A bracket that is open."""

    def __init__(self, sign: str, token: int) -> None:
        self.sign, self.token = sign, token
        self.colons: list[int] = []
        self.pipes: list[int] = []


def read_groups(text: str, offset: int) -> Groups:
    """Finds what is well formed of `[before:after:when]` and `[a|b]` in a part, which starts at `offset`."""
    if "[" not in text:
        return Groups((text,) if text else (), frozenset(), (), "")
    tokens: list[str] = []
    starts: list[int] = []
    at = 0
    while at < len(text):
        match = _GROUP_TOKEN.match(text, at)
        if match is None:
            return Groups((text,), frozenset(), (), "a \\ at the end of a line, which escapes nothing, takes it away")
        tokens.append(match.group())
        starts.append(at)
        at = match.end()

    # What stands in place of tokens; None where a token is left out.
    marks: dict[int, tuple[Piece, ...]] = {}
    switches: list[tuple[int, int | float]] = []
    read: set[int] = set()
    stack: list[OpenBracket] = []
    loose_pipe: int | None = None  # the first that is in no group
    for index, token in enumerate(tokens):
        if token in ("[", "("):
            stack.append(OpenBracket(token, index))
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
                when = step_of(text[starts[last] + 1 : starts[index]]) if len(frame.colons) <= 2 else None
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
        return Groups((text,), frozenset(), (), hindrance if read else "")
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
    return Groups(tuple(pieces), frozenset(read), tuple(sorted(switches)), "")


def _give_up(stack: list[OpenBracket], loose_pipe: int | None) -> int | None:
    """Empties the stack, as what holds an ill-formed bracket is ill-formed; gives the first pipe in no group."""
    pipes = [pipe for frame in stack for pipe in frame.pipes[:1]]
    stack.clear()
    return loose_pipe if loose_pipe is not None else min(pipes, default=None)


def step_of(text: str) -> int | float | None:
    """The step of a switch; None if it is no number."""
    match = _WHEN.fullmatch(text)
    if match is None:
        return None
    number = max(-_NEVER, min(_NEVER, float(match.group(1))))
    return float(number) if "." in match.group(1) else int(number)


def print_pieces(pieces: Sequence[Piece]) -> str:
    """The text of pieces, which is read as the same pieces."""
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
    return str(when) if isinstance(when, int) else plain_number(when)


def plain_number(number: float) -> str:
    """The shortest digits that read as this number, without an exponent."""
    return format(decimal.Decimal(repr(number)), "f")


# --- The text of a step ---


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


def step_problems(switches: Sequence[PlacedSwitch], span: Pass) -> Iterator[Problem]:
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
