"""The rules of Compel's grammar: a prompt to weighted fragments of text.

Reads what the package reads (compel 2.5, `prompt_parser.py`), which is an ordered choice of alternatives without a
way back: the first that fits is taken, and a word that fits nothing is text. Where the package stops with an error,
`CompelError` is raised.
"""

import bisect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sdjax.diffusion import elementary
from sdjax.text.problems import Problem
from sdjax.text.tags import Tag, TagError, read_list

# One `+` or one `-`.
PLUS, MINUS = 1.1, 0.9


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


class CompelError(Exception):
    """A prompt at which the package stops with an error."""


class ProblemList:
    """Problems by their letter in the text as it was given, before spaces were put in.

    inserted: where spaces were put in, counted in the text with them.
    """

    def __init__(self, inserted: Sequence[int]) -> None:
        self._inserted = inserted
        self.found: list[Problem] = []

    def add(self, at: int, message: str) -> None:
        """Adds a problem at a place, counted from 0, of the text with its spaces."""
        self.found.append(Problem(at - bisect.bisect_left(self._inserted, at) + 1, message))


# The package takes the two rare ones for no space, and then stops with an error.
SPACES = str.maketrans("\t\x0b\x0c", "   ")

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


class CompelReader:
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

    def whole(self, problems: ProblemList) -> tuple[Part, ...]:
        """A conjunction, a blend or a prompt."""
        call = self._call(0, ("and", "add"))
        if call is not None:
            prompts, options, end = call
            if self.text[end:].strip():
                problems.add(end, "what follows .and() is left out; put it into the brackets, in quotes")
            weights = _weights(options, len(prompts))
            parts = zip(map(_flatten, prompts), weights, strict=True)
            return tuple(part_of(fragments, weight) for fragments, weight in parts if fragments) or EMPTY

        start = self._loras(0)
        call = self._call(start, ("blend",))
        if call is not None:
            prompts, options, end = call
            if self.text[self._loras(end) :].strip():
                raise CompelError("something follows .blend(), which has to stand alone")
            return (self._blend(prompts, options),)
        nodes, _ = self.prompt(start)
        return parts_of(nodes)

    def _blend(self, prompts: Sequence[_Nodes], options: Sequence[str]) -> Part:
        normalised = not (options and options[-1] == "no_normalize")
        weights = _weights(options if normalised else options[:-1], len(prompts))
        texts = [_flatten(prompt) for prompt in prompts]
        if not all(texts):
            raise CompelError("a prompt of .blend() has no words")
        if any(isinstance(node, _Swap) for prompt in prompts for node in prompt):
            raise CompelError("there can't be a .swap() in .blend()")
        total = sum(weights) if normalised else 1.0
        if not total:
            raise CompelError("the weights of .blend() sum up to 0, and can't be divided by that; add no_normalize")
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
        inner = CompelReader(inside.replace('\\"', '"').replace('"', '\\"').translate(SPACES))
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
        raise CompelError(f"{', '.join(options)} are not all numbers") from error
    if len(weights) != count:
        raise CompelError(f"there are {count} prompts and {len(weights)} weights")
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
            fragments += fuse(run)
            run.clear()
        else:
            run.append(fragment)
    return (*fragments, *fuse(run))


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


def fuse(fragments: Sequence[Fragment]) -> tuple[Fragment, ...]:
    """The fragments of a prompt; neighbours of one weight are one."""
    return tuple(
        Fragment(_unescape(" ".join(fragment.text for fragment in run)), weight)
        for weight, run in itertools.groupby(fragments, lambda fragment: fragment.weight)
    )


def part_of(fragments: tuple[Fragment, ...], weight: float = 1.0) -> Part:
    """The part of a prompt without operators."""
    return Part((Blended(fragments, 1.0),), weight)


EMPTY = (part_of((Fragment("", 1.0),)),)


def parts_of(nodes: Sequence[_Node]) -> tuple[Part, ...]:
    """The only part of a prompt without `.and()`."""
    fragments = _flatten(nodes)
    return (part_of(fragments),) if fragments else EMPTY
