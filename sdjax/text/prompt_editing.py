"""Prompt editing of AUTOMATIC1111: `[before:after:when]` switches once, `[a|b|c]` alternates from step to step.

The web UI reads these with a parser of ambiguous grammars. Where brackets are unbalanced, what it does can change from
one start to the next; here every group that is well formed is read, which is always one of its readings.

A text is kept as a flat row of pieces, so no depth of brackets is too deep to be read, compared or printed.
"""

import bisect
import decimal
import enum
import re
from collections.abc import Iterator, Mapping, Sequence
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


class _Token(NamedTuple):
    """A sign or plain text, and where it begins."""

    start: int
    text: str


def _tokens(text: str) -> list[_Token] | None:
    """The tokens of a part; None if a backslash at the end of a line is in the way."""
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _GROUP_TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(_Token(at, match.group()))
        at = match.end()
    return tokens


class OpenBracket:
    """A bracket that is open: its sign, its token's number, and those of colons and pipes that are in it alone."""

    def __init__(self, sign: str, token: int) -> None:
        self.sign, self.token = sign, token
        self.colons: list[int] = []
        self.pipes: list[int] = []


class _GroupReader:
    """Finds groups, taking one token after the other.

    Attributes:
      marks: the pieces that stand in the place of tokens, by their numbers; none where a token is left out.
      read: where the brackets of groups open.
      switches: where switches open, and when they switch.
      loose_pipe: the number of the first pipe that is in no group; None if there is none.
    """

    def __init__(self, text: str, tokens: Sequence[_Token]) -> None:
        self._text, self._tokens = text, tokens
        self._stack: list[OpenBracket] = []
        self.marks: dict[int, tuple[Piece, ...]] = {}
        self.read: set[int] = set()
        self.switches: list[tuple[int, int | float]] = []
        self.loose_pipe: int | None = None

    def take(self, index: int) -> None:
        """Takes the next token."""
        sign = self._tokens[index].text
        if sign in ("[", "("):
            self._stack.append(OpenBracket(sign, index))
        elif sign == ":" and self._stack:
            self._stack[-1].colons.append(index)
        elif sign == "|":
            self._take_pipe(index)
        elif sign in ("]", ")"):
            opening = "[" if sign == "]" else "("
            matches = self._stack and self._stack[-1].sign == opening
            if not (matches and self._close(self._stack[-1], index)):
                self.give_up()

    def give_up(self) -> None:
        """Passes over all brackets that are open, as what holds an ill-formed one is ill-formed."""
        pipes = [pipe for bracket in self._stack for pipe in bracket.pipes[:1]]
        self._stack.clear()
        if self.loose_pipe is None:
            self.loose_pipe = min(pipes, default=None)

    def _take_pipe(self, index: int) -> None:
        if self._stack:
            self._stack[-1].pipes.append(index)
        elif self.loose_pipe is None:
            self.loose_pipe = index

    def _close(self, bracket: OpenBracket, end: int) -> bool:
        """Closes the innermost bracket if it is well formed; gives whether it is."""
        if bracket.sign == "(":
            well_formed = not bracket.pipes and len(bracket.colons) <= 1
        elif bracket.pipes and bracket.colons:
            well_formed = False
        elif bracket.colons:
            well_formed = self._mark_switch(bracket, end)
        else:
            well_formed = True
            if bracket.pipes:
                self._mark_alternation(bracket, end)
        if well_formed:
            self._stack.pop()
        return well_formed

    def _mark_alternation(self, bracket: OpenBracket, end: int) -> None:
        self.read.add(self._tokens[bracket.token].start)
        self.marks[bracket.token] = (Alternate(len(bracket.pipes) + 1),)
        self.marks |= dict.fromkeys(bracket.pipes, (Mark.NEXT,))
        self.marks[end] = (Mark.END,)

    def _mark_switch(self, bracket: OpenBracket, end: int) -> bool:
        """Marks a switch, `[before:after:when]` or `[after:when]`; gives whether it is one."""
        *between, last = bracket.colons
        when = step_of(self._text[self._tokens[last].start + 1 : self._tokens[end].start])
        if when is None or len(between) > 1:
            return False
        start = self._tokens[bracket.token].start
        self.read.add(start)
        self.switches.append((start, when))
        self.marks[bracket.token] = (Switch(when),) if between else (Switch(when), Mark.NEXT)
        self.marks |= dict.fromkeys(between, (Mark.NEXT,))
        self.marks |= dict.fromkeys(range(last, end), ())
        self.marks[end] = (Mark.END,)
        return True


def read_groups(text: str, offset: int) -> Groups:
    """Finds what is well formed of `[before:after:when]` and `[a|b]` in a part, which starts at `offset`."""
    if "[" not in text:
        return Groups((text,) if text else (), frozenset(), (), "")
    tokens = _tokens(text)
    if tokens is None:
        return Groups((text,), frozenset(), (), "a \\ at the end of a line, which escapes nothing, takes it away")
    reader = _GroupReader(text, tokens)
    for index in range(len(tokens)):
        reader.take(index)
    reader.give_up()
    if reader.loose_pipe is not None:
        place = offset + tokens[reader.loose_pipe].start + 1
        hindrance = f"the | at letter {place}, which is not between options, takes it away; write \\| there"
        return Groups((text,), frozenset(), (), hindrance if reader.read else "")
    pieces = _pieces(tokens, reader.marks)
    return Groups(pieces, frozenset(reader.read), tuple(sorted(reader.switches)), "")


def _pieces(tokens: Sequence[_Token], marks: Mapping[int, tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """Marks, and as one piece each the plain text between them."""
    pieces: list[Piece] = []
    plain: list[str] = []
    for index, token in enumerate(tokens):
        if index not in marks:
            plain.append(token.text)
            continue
        if plain and marks[index]:
            pieces.append("".join(plain))
            plain.clear()
        pieces += marks[index]
    if plain:
        pieces.append("".join(plain))
    return tuple(pieces)


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
    stack: list[tuple[int, int, bool]] = []  # branch wanted, branch we are in, whether the group itself is active
    active = True
    for piece in pieces:
        if isinstance(piece, str):
            if active:
                texts.append(piece)
        elif isinstance(piece, Mark):
            wanted, branch, outside = stack.pop()
            active = outside
            if piece is Mark.NEXT:
                stack.append((wanted, branch + 1, outside))
                active = outside and wanted == branch + 1
        else:
            if isinstance(piece, Switch):
                wanted = int(step > last_before(piece.when, span))
            else:
                wanted = (step - 1) % piece.options
            stack.append((wanted, 0, active))
            active = active and wanted == 0
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
        switch_text = f"this switch, {_print_when(when)} of {steps} steps,"
        if span.before is not None:
            switch_text = f"this switch, {_print_when(when)} of {span.before} steps and {steps} of the second pass,"
        if last < 1 and span.before is None:
            yield Problem(letter, f"{switch_text} is over before the first step: its first text is never seen")
        elif last >= steps - 1 and not span.followed:
            room = f"{steps - 2} is the last step to give" if steps > 2 else "so few steps leave no room for a switch"
            if span.before is not None:
                room = f"{span.before + steps - 2} is the last step to give" if steps > 2 else room
            yield Problem(letter, f"{switch_text} comes after the last step: its second text is never seen; {room}")
