"""Compel's prompt grammar: `word++`, `(some words)1.3`, `("one", "other").blend(1, 2)` and `("one", "other").and()`.

Reads what the package reads (compel 2.5, `prompt_parser.py`), which is an ordered choice of alternatives without a
way back: the first that fits is taken, and a word that fits nothing is text. Where the package stops with an error, the
prompt is read as words, and the problem is told.
"""

import bisect
import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sdjax.diffusion import elementary
from sdjax.text.grammar import Problem
from sdjax.text.tags import Tag, TagError, read_list

# One `+` or one `-`.
PLUS, MINUS = 1.1, 0.9
# Brackets in brackets. The package's own limit is Python's recursion, and its time grows with the power of the depth.
DEEPEST = 20

OPERATORS = ("attend", "swap", "blend", "and", "add")


class Fragment(NamedTuple):
    """Words of one weight; the tokenizer reads each fragment alone."""

    text: str
    weight: float


class Blended(NamedTuple):
    """Fragments, and their share in a sum."""

    fragments: tuple[Fragment, ...]
    share: float


class Part(NamedTuple):
    """What becomes one chunk: a sum, and the weight of the whole of it."""

    sum: tuple[Blended, ...]
    weight: float


class Parsed(NamedTuple):
    """What `parse` gives; there is always a part. The tags are what `withLora` names, in order."""

    parts: tuple[Part, ...]
    problems: tuple[Problem, ...]
    tags: tuple[Tag, ...]


class _Weighted(NamedTuple):
    nodes: "Sequence[_Node]"
    weight: float


class _Swap(NamedTuple):
    """A swap, of which the package's embeddings have only the original."""

    original: "Sequence[_Node]"


class _Lora(NamedTuple):
    """Names an adapter; no text."""


_Node = str | _Weighted | _Swap | _Lora
_Nodes = tuple[_Node, ...]
# An alternative that fits: what it reads, and where the text goes on.
_Match = tuple[_Nodes, int]


class _ReadingError(Exception):
    """The package stops here."""


def parse(text: str) -> Parsed:
    """Reads a prompt; any string at all."""
    spaced, inserted = _space_after_commas(text)
    if not spaced.strip():
        return Parsed(_EMPTY, (), ())
    problems: list[Problem] = []
    tell = _Teller(inserted, problems)
    for at, message in _loose_brackets(spaced):
        tell.of(at, message)
    for match in _CALL.finditer(spaced):
        if match[1] not in OPERATORS:
            near = difflib.get_close_matches(match[1], OPERATORS, 1)
            hint = f"did you mean .{near[0]}()?" if near else f"there are .{'(), .'.join(OPERATORS)}()"
            tell.of(match.start(1) - 1, f".{match[1]}() is no operator; {hint}")
    for match in _ODD_WEIGHT.finditer(text):
        weight = match[1].strip()[:20]
        told = f"{weight!r} is no weight here but text, or text in part; write )1.2 for one, or put a word before it"
        problems.append(Problem(match.start(1) + 1, told))
    if _depth(spaced) > DEEPEST:
        tell.of(0, f"more than {DEEPEST} brackets are open at once, so all of it is read as words")
        return Parsed((_part(_fuse([Fragment(" ".join(spaced.split()), 1.0)])),), tuple(problems), ())

    reader = _Reader(spaced)
    try:
        parts = reader.whole(tell)
    except _ReadingError as error:
        tell.of(0, f"{error}; it is read as words")
        reader = _Reader(spaced)
        parts = _parts_of(reader.prompt(0)[0])
    if not problems:  # which may be why words fitted nothing
        for at, word in reader.free_words:
            _tell_of_free_word(at, word, tell)
    for at, what in reader.unknown:
        tell.of(at, what)
    return Parsed(parts, tuple(sorted(set(problems))), tuple(tag for _, tag in sorted(reader.loras.items())))


class _Teller:
    """Lists problems by their letter in the text as it was given."""

    def __init__(self, inserted: Sequence[int], problems: list[Problem]) -> None:
        self._inserted, self._problems = inserted, problems

    def of(self, at: int, message: str) -> None:
        """Adds a problem at a place, counted from 0, of the text with its spaces."""
        self._problems.append(Problem(at - bisect.bisect_left(self._inserted, at) + 1, message))


def _tell_of_free_word(at: int, word: str, tell: "_Teller") -> None:
    bracket = _BRACKET.search(word)
    if word.startswith((".blend(", ".and(", ".add(")):
        tell.of(at, f"{word.partition('(')[0]}() has to follow the brackets around a whole prompt; here it is text")
    elif bracket:
        sign, shown = bracket[1], repr(word if len(word) <= 20 else word[:20] + "...")
        tell.of(
            at + bracket.start(1), f"the {sign} in {shown} is text, not syntax; write \\{sign} if it is meant to be"
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
    return "".join(pieces).translate(_SPACES), inserted


# The package takes the two rare ones for no space, and then stops with an error.
_SPACES = str.maketrans("\t\x0b\x0c", "   ")


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


# --- The grammar ---

_SPACE = re.compile(r"[ \n\r]*")
_WORD = re.compile(r"""(?:\\[()",.+\-=]|[-+](?=[^\s()",.+\-=])|[^\s()",.+\-=])+""", re.ASCII)
_PLAIN_WORD = re.compile(r"""[^\s()".+\-]+(?=[ \n]+[^.\s]|[ \n]*\Z)""", re.ASCII)
_FREE_WORD = re.compile(r"\S+", re.ASCII)
_QUOTED = re.compile(r'"((?:\\"|[^"\n\r])*)"')
_LORA = re.compile(r"(?:useLora|withLora)\s*\(\s*([\w-]+)\s*(?:,\s*([-+]?[\d.]+)\s*)?\)", re.ASCII)
_SIGNS = re.compile(r"\++|-+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)|-?[0-9]+")
_OPTION = re.compile(
    r"[A-Za-z0-9_-]+\s*=\s*(?:[+-]?(?:\d+\.\d*|\.\d+)|[A-Za-z0-9_-]+)|[+-]?(?:\d+\.\d*|\.\d+)|-?[0-9]+|[A-Za-z0-9_-]+"
)
_QUOTED_ESCAPES = {r"\t": "\t", r"\n": "\n", r"\f": "\f", r"\r": "\r"}
_QUOTED_ESCAPE = re.compile(r"\\[tnfr]")


class _Reader:
    """The rules, each remembering what it found where.

    free_words: words that fitted nothing, and where.
    unknown: what was read but can't be drawn, and where.
    loras: adapters by where they are named: the place, and within quotes the place in these.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.free_words: list[tuple[int, str]] = []
        self.unknown: list[tuple[int, str]] = []
        self.loras: dict[tuple[int, ...], Tag] = {}
        self._loras_named = "Lora" in text
        self._bracketed: dict[int, _Match | None] = {}
        self._quotes: dict[tuple[int, bool], _Match | None] = {}

    def whole(self, tell: "_Teller") -> tuple[Part, ...]:
        """A conjunction, a blend or a prompt."""
        call = self._call(0, ("and", "add"))
        if call is not None:
            prompts, options, end = call
            if self.text[end:].strip():
                tell.of(end, "what follows .and() is left out; put it into the brackets, in quotes")
            weights = _weights(options, len(prompts))
            parts = zip(map(_flatten, prompts), weights, strict=True)
            return tuple(_part(fragments, weight) for fragments, weight in parts if fragments) or _EMPTY

        start = self._loras(0)
        call = self._call(start, ("blend",))
        if call is not None:
            prompts, options, end = call
            if self.text[self._loras(end) :].strip():
                raise _ReadingError("something follows .blend(), which has to stand alone")
            return (self._blend(prompts, options),)
        nodes, _ = self.prompt(start)
        return _parts_of(nodes)

    def _blend(self, prompts: Sequence[_Nodes], options: Sequence[str]) -> Part:
        normalised = not (options and options[-1] == "no_normalize")
        weights = _weights(options if normalised else options[:-1], len(prompts))
        texts = [_flatten(prompt) for prompt in prompts]
        if not all(texts):
            raise _ReadingError("a prompt of .blend() has no words")
        if any(isinstance(node, _Swap) for prompt in prompts for node in prompt):
            raise _ReadingError("there can't be a .swap() in .blend()")
        total = sum(weights) if normalised else 1.0
        if not total:
            raise _ReadingError("the weights of .blend() sum up to 0, and can't be divided by that; add no_normalize")
        return Part(tuple(Blended(text, weight / total) for text, weight in zip(texts, weights, strict=True)), 1.0)

    def prompt(self, at: int) -> _Match:
        """Everything up to the end."""
        nodes: list[_Node] = []
        while True:
            at = self._skip(at)
            plain = None if self._loras_named else _PLAIN_WORD.match(self.text, at)
            if plain:  # which no rule but the last takes
                nodes.append(_unescape(plain[0]))
                at = plain.end()
                continue
            match = self._first(at, self.swap, self.lora, self.attention, self.quoted, self.bracketed, self.free_word)
            if match is None:
                return tuple(nodes), at
            found, at = match
            nodes += found

    def free_word(self, at: int) -> _Match | None:
        """A word of any signs."""
        match = _FREE_WORD.match(self.text, at)
        if match is None:
            return None
        self.free_words.append((at, match[0]))
        return (_unescape(match[0]),), match.end()

    def swap(self, at: int) -> _Match | None:
        """`word.swap(other, options)`."""
        target = self.target(at)
        opened = target and self._literal(target[1], ".swap") and self._literal(self._literal(target[1], ".swap"), "(")
        if not target or not opened:
            return None
        _, end = self._fragments(opened, commas=False)
        comma = self._literal(end, ",")
        if comma:
            _, end = self._options(comma)
        closed = self._literal(end, ")")
        if not closed:
            return None
        self.unknown.append(
            (at, ".swap() needs control of cross-attention, which there is none of; only its original is drawn")
        )
        return (_Swap(target[0] or ("",)),), closed

    def lora(self, at: int) -> _Match | None:
        """`withLora(name, weight)`."""
        match = _LORA.match(self.text, at)
        if match is None:
            return None
        try:
            (self.loras[at,],) = read_list("lora", f"{match[1]}:{match[2] or 1}")
        except TagError as error:
            self.unknown.append((at, f"{match[0][:40]}: {error}"))
        return (_Lora(),), match.end()

    def attention(self, at: int) -> _Match | None:
        """`target.attend(weight)`, `(words)weight` or `word++`."""
        return self._attend(at) or self._attention_after(at)

    def _attend(self, at: int) -> _Match | None:
        target = self.target(at)
        named = target and self._literal(target[1], ".attend")
        opened = named and self._literal(named, "(")
        if not target or not opened:
            return None
        weight = self._weight(self._skip(opened), numbers=True)
        closed = weight and self._literal(weight[1], ")")
        return ((_Weighted(target[0], weight[0]),), closed) if weight and closed else None

    def _attention_after(self, at: int) -> _Match | None:
        grouped = self.quoted(at) or self.bracketed(at)
        if grouped:
            weight = self._weight(grouped[1], numbers=True)
            if weight:
                return (_Weighted(grouped[0], weight[0]),), weight[1]
        word = self.word(at)
        weight = self._weight(word[1], numbers=False) if word else None
        return ((_Weighted(word[0], weight[0]),), weight[1]) if word and weight else None

    def target(self, at: int) -> _Match | None:
        """What an operator can stand behind."""
        return self._first(at, self.quoted, self.bracketed, self.word)

    def word(self, at: int) -> _Match | None:
        """A word without syntax in it."""
        match = _WORD.match(self.text, at)
        return ((_unescape(match[0]),), match.end()) if match else None

    def quoted(self, at: int) -> _Match | None:
        """Fragments in quotes."""
        return self._quote(at, prompt=False)

    def quoted_prompt(self, at: int) -> _Match | None:
        """A prompt in quotes."""
        return self._quote(at, prompt=True)

    def _quote(self, at: int, *, prompt: bool) -> _Match | None:
        known = (at, prompt)
        if known not in self._quotes:
            self._quotes[known] = self._read_quote(at, prompt)
        return self._quotes[known]

    def _read_quote(self, at: int, prompt: bool) -> _Match | None:
        match = _QUOTED.match(self.text, at)
        if match is None:
            return None
        inside = _QUOTED_ESCAPE.sub(lambda found: _QUOTED_ESCAPES[found[0]], match[1])
        if not inside.strip():
            return ("",), match.end()
        inner = _Reader(inside.replace('\\"', '"').replace('"', '\\"').translate(_SPACES))
        nodes, end = inner.prompt(0) if prompt else inner._fragments(0, commas=True)
        if inner.text[end:].strip(" \n\r"):
            return None
        self.free_words += [(at, word) for _, word in inner.free_words]
        self.unknown += [(at, what) for _, what in inner.unknown]
        self.loras |= {(at, *place): tag for place, tag in inner.loras.items()}
        return nodes, match.end()

    def bracketed(self, at: int) -> _Match | None:
        """Fragments in brackets."""
        if at not in self._bracketed:
            opened = self._literal(at, "(")
            match = self._fragments(opened, commas=True) if opened else None
            closed = match and self._literal(match[1], ")")
            self._bracketed[at] = (match[0], closed) if match and closed else None
        return self._bracketed[at]

    def _fragments(self, at: int, *, commas: bool) -> _Match:
        nodes: list[_Node] = []
        while True:
            start = self._skip(at)
            match = self._first(start, self.lora, self.attention, self.swap, self.bracketed, self.quoted, self.word)
            if match is None and commas and self.text[start : start + 1] in (",", "."):
                match = (self.text[start],), start + 1
            if not match:
                return tuple(nodes), at
            found, at = match
            nodes += found

    def _call(self, at: int, names: Sequence[str]) -> tuple[list[_Nodes], list[str], int] | None:
        """`(target, target).name(options)`."""
        end = self._literal(at, "(")
        prompts: list[_Nodes] = []
        while end:
            match = self._first(self._skip(end), self.quoted, self.bracketed, self.word, self.quoted_prompt)
            if match is None:
                return None
            prompts.append(match[0])
            comma = self._literal(match[1], ",")
            if not comma:
                end = self._literal(match[1], ")")
                break
            end = comma
        named = end and next((stop for name in names if (stop := self._literal(end, f".{name}"))), 0)
        opened = named and self._literal(named, "(")
        if not opened:
            return None
        options, end = self._options(opened)
        closed = self._literal(end, ")")
        return (prompts, options, closed) if closed else None

    def _options(self, at: int) -> tuple[list[str], int]:
        """Weights and flags, up to the first that is neither."""
        options: list[str] = []
        after = at
        while match := _OPTION.match(self.text, self._skip(after)):
            options.append(match[0])
            at = match.end()
            comma = self._literal(at, ",")
            if not comma:
                break
            after = comma
        return options, at

    def _weight(self, at: int, *, numbers: bool) -> tuple[float, int] | None:
        signs = _SIGNS.match(self.text, at)
        if signs:
            # A power that is no float any more is as good as the largest.
            base, power = (PLUS if signs[0][0] == "+" else MINUS), len(signs[0])
            return elementary.power(base, min(power, 7000)), signs.end()
        number = _NUMBER.match(self.text, at) if numbers else None
        return (float(number[0]), number.end()) if number else None

    def _loras(self, at: int) -> int:
        while match := self.lora(self._skip(at)):
            at = match[1]
        return at

    def _skip(self, at: int) -> int:
        return _SPACE.match(self.text, at).end()  # type: ignore[union-attr]

    def _literal(self, at: int, sign: str) -> int:
        """Where the text goes on after a sign, or 0."""
        at = self._skip(at)
        return at + len(sign) if self.text.startswith(sign, at) else 0

    @staticmethod
    def _first(at: int, *rules: Callable[[int], _Match | None]) -> _Match | None:
        return next((match for rule in rules if (match := rule(at)) is not None), None)


def _weights(options: Sequence[str], count: int) -> list[float]:
    """The weights of prompts that are joined."""
    if not options:
        return [1.0] * count
    try:
        weights = [float(option) for option in options]
    except ValueError as error:
        raise _ReadingError(f"{', '.join(options)} are not all numbers") from error
    if len(weights) != count:
        raise _ReadingError(f"there are {count} prompts and {len(weights)} weights")
    return weights


# --- The tree to fragments ---

# Not from within a row of backslashes: where no sign is behind it, each of them would be tried.
_ESCAPED = re.compile(r'(?<!\\)\\+([()"])')


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text


def _flatten(nodes: Sequence[_Node]) -> tuple[Fragment, ...]:
    """The fragments of a prompt; neighbours of one weight are one, except where a swap begins or ends."""
    fragments: list[Fragment] = []
    run: list[Fragment] = []
    for fragment in _walk(nodes, 1.0):
        if fragment is None:
            fragments += _fuse(run)
            run.clear()
        else:
            run.append(fragment)
    return (*fragments, *_fuse(run))


def _walk(nodes: Sequence[_Node], weight: float) -> Iterator[Fragment | None]:
    """The fragments of a tree in order, and None where a swap begins and ends."""
    for node in nodes:
        if isinstance(node, str):
            yield Fragment(node, weight)
        elif isinstance(node, _Weighted):
            yield from _walk(node.nodes, weight * node.weight)
        elif isinstance(node, _Swap):
            yield None
            yield from _walk(node.original, weight)
            yield None


def _fuse(fragments: Sequence[Fragment]) -> tuple[Fragment, ...]:
    return tuple(
        Fragment(_unescape(" ".join(fragment.text for fragment in run)), weight)
        for weight, run in itertools.groupby(fragments, lambda fragment: fragment.weight)
    )


def _part(fragments: tuple[Fragment, ...], weight: float = 1.0) -> Part:
    return Part((Blended(fragments, 1.0),), weight)


_EMPTY = (_part((Fragment("", 1.0),)),)


def _parts_of(nodes: Sequence[_Node]) -> tuple[Part, ...]:
    fragments = _flatten(nodes)
    return (_part(fragments),) if fragments else _EMPTY
