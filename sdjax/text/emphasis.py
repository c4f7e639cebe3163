"""Emphasis of AUTOMATIC1111's prompts: `(more)`, `[less]` and `(this much:1.3)` are weights, `BREAK` starts a chunk."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# What a plain bracket does: `(more)` and `[less]`.
ROUND, SQUARE = 1.1, 1 / 1.1


class Span(NamedTuple):
    """A text in which every token has one weight."""

    text: str
    weight: float


# The span which starts a chunk. That weights multiply it too, and it is a word when they do, is the web UI's rule.
BREAK = Span("BREAK", -1.0)


WEIGHT_TOKEN = re.compile(r"\\[()\[\]\\]?|[(\[\])]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
BREAK_WORD = re.compile(r"\bBREAK\b")
SPECIAL = re.compile(r"[\\()\[\]]|BREAK")


def weigh(text: str) -> tuple[Span, ...]:
    r"""The spans of a resolved text, in order; those equal to `BREAK` start a chunk.

    Weights are products of floats in the web UI's order: of the brackets that are closed, the inner ones first. A
    bracket that is never closed reaches to the end. `\(`, `\)`, `\[`, `\]` and `\\` are letters.
    """
    if not SPECIAL.search(text):
        return (Span(text, 1.0),)
    texts: list[str] = []
    weights: list[float] = []
    factors: list[tuple[int, int, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    for match in WEIGHT_TOKEN.finditer(text):
        token = match.group()
        if token[0] == "\\":
            texts.append(token[1:])
            weights.append(1.0)
        elif token in ("(", "["):
            opened[token].append(len(texts))
        elif match.group(1) and opened["("]:
            number = number_of(match.group(1))
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
    pieces = BREAK_WORD.split(text)
    last = len(pieces) - 1
    for index, piece in enumerate(pieces):
        piece = piece.lstrip() if index > 0 else piece
        pieces[index] = piece.rstrip() if index < last else piece
    return pieces


def number_of(text: str) -> float | None:
    """The number that a text is; None if it is none."""
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
