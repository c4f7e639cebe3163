"""The texts that a template stands for: one of them, decided by a seed, or all of them."""

import bisect
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from sdjax.text.template_grammar import (
    MAX_LETTERS,
    WEIGHT_OF_ONE,
    Choice,
    Option,
    Part,
    Reference,
    Template,
    TemplateError,
    lines_of,
)
from sdjax.text.wildcards import NO_WILDCARDS, Wildcards, size_of

# --- One result ---


class _Draws:
    """Whole numbers that follow from what they are made of alone, on any machine and in any version of Python."""

    def __init__(self, *sources: object) -> None:
        text = json.dumps(["sdjax template", *sources])
        self._start = hashlib.sha256(text.encode())
        self._number = 0

    def below(self, limit: int) -> int:
        """One of 0 to `limit` - 1; 256 bits make their small bias vanish."""
        self._number += 1
        state = self._start.copy()
        state.update(b"%d" % self._number)
        return int.from_bytes(state.digest()) % limit


def choose(template: Template, wildcards: Wildcards, seed: int, label: str = "") -> str:
    """One result, decided by the template, the wildcards, the seed and the label, and by nothing else.

    Args:
      template: from `parse_template`.
      wildcards: the files.
      seed: any whole number.
      label: tells apart the choices of templates that share a seed, such as a prompt and a negative prompt.

    Raises:
      TemplateError: as `count`; also if the result is longer than `MAX_LETTERS`.
    """
    size_of(template.parts, wildcards)
    return _chosen(template.parts, wildcards, _Draws(seed, label, template.text))


def _chosen(parts: Iterable[Part], wildcards: Wildcards, draws: _Draws) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if isinstance(part, Reference):
            part = Choice((Option(WEIGHT_OF_ONE, (part,)),), 1, 1, "", part.position)
        options = _options(part, wildcards)
        most = len(options) if part.most is None else part.most
        number = part.least + draws.below(most - part.least + 1)
        if lines_of(part):
            taken = _drawn_evenly(len(options), number, draws)
        else:
            taken = _drawn([option.weight for option in options], number, draws)
        texts.append(_joined([_chosen(options[index].parts, wildcards, draws) for index in taken], part.joiner))
    return _joined(texts)


def _options(choice: Choice, wildcards: Wildcards) -> tuple[Option, ...]:
    lines = lines_of(choice)
    return choice.options if lines is None else wildcards.options(lines)


def _drawn(weights: Sequence[int], number: int, draws: _Draws) -> list[int]:
    """Different indices, each drawn by its weight among those that are left."""
    if number == 1:
        up_to = list(itertools.accumulate(weights))
        return [bisect.bisect_right(up_to, draws.below(up_to[-1]))]
    left = _Left(weights)
    return [left.take(draws.below(left.total)) for _ in range(number)]


class _Left:
    """What is left to draw from, with its weights: a Fenwick tree, in which each draw looks at a few sums only."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = weights
        self._sums = [0, *weights]
        self.total = sum(weights)
        for place in range(1, len(self._sums)):
            above = place + (place & -place)
            if above < len(self._sums):
                self._sums[above] += self._sums[place]

    def take(self, drawn: int) -> int:
        """Takes out the first whose weight, with those before it that are left, is above a number; gives its index."""
        place = 0
        for bit in reversed(range(len(self._weights).bit_length())):
            following = place + (1 << bit)
            if following < len(self._sums) and self._sums[following] <= drawn:
                place, drawn = following, drawn - self._sums[following]
        weight = self._weights[place]
        self.total -= weight
        following = place + 1
        while following < len(self._sums):
            self._sums[following] -= weight
            following += following & -following
        return place


def _drawn_evenly(count: int, number: int, draws: _Draws) -> list[int]:
    """The same for equal weights, without a look at all of them: wildcards are long."""
    moved: dict[int, int] = {}
    taken = []
    for last in range(count - 1, count - 1 - number, -1):
        index = draws.below(last + 1)
        taken.append(moved.get(index, index))
        moved[index] = moved.get(last, last)
    return taken


def _joined(texts: Sequence[str], joiner: str = "") -> str:
    letters = sum(map(len, texts)) + len(joiner) * (len(texts) - 1)
    if letters > MAX_LETTERS:
        raise TemplateError(f"a result has {letters} letters; expected up to {MAX_LETTERS}")
    return joiner.join(texts)


# --- All results ---


def combinations(template: Template, wildcards: Wildcards = NO_WILDCARDS) -> Iterator[str]:
    """All results one after the other, the last choice in the text varying fastest.

    A choice of several gives every order of the options, few before many. Weights have no say. Results that come about
    in two ways are there twice.

    Raises:
      TemplateError: as `count`, at once; while iterating, for a result longer than `MAX_LETTERS`.
    """
    size_of(template.parts, wildcards)
    return _results(template.parts, wildcards)


def _results(parts: Iterable[Part], wildcards: Wildcards) -> Iterator[str]:
    return map(_joined, _product([functools.partial(_results_of, part, wildcards) for part in parts]))


def _results_of(part: Part, wildcards: Wildcards) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Reference):
        for option in wildcards.options(part):
            yield from _results(option.parts, wildcards)
    else:
        options = _options(part, wildcards)
        most = len(options) if part.most is None else part.most
        for number in range(part.least, most + 1):
            for taken in itertools.permutations(options, number):
                makers = [functools.partial(_results, option.parts, wildcards) for option in taken]
                for texts in _product(makers):
                    yield _joined(texts, part.joiner)


def _product(makers: Sequence[Callable[[], Iterator[str]]]) -> Iterator[list[str]]:
    """As `itertools.product`, which would hold all texts of each factor, where this begins its iterator again."""
    running: list[Iterator[str]] = []
    texts: list[str] = []
    while True:
        while len(running) < len(makers):
            running.append(makers[len(running)]())
            texts.append(next(running[-1]))
        yield list(texts)
        while running:
            following = next(running[-1], None)
            if following is not None:
                texts[-1] = following
                break
            running.pop()
            texts.pop()
        else:
            return
