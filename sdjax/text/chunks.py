"""Chunks: token ids in rows of the text encoder's length, each with start, end and padding."""

from collections.abc import Sequence
from typing import NamedTuple

from sdjax.text.tokenizer import Tokenizer


class Chunk(NamedTuple):
    """One row of a reading."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def make_chunk(tokenizer: Tokenizer, ids: Sequence[int], weights: Sequence[float]) -> Chunk:
    """Start, tokens, end, padding."""
    room = tokenizer.length - 2 - len(ids)
    row = (tokenizer.start, *ids, tokenizer.end, *[tokenizer.padding] * room)
    return Chunk(row, (1.0, *weights, *[1.0] * (room + 1)))


def empty_chunk(tokenizer: Tokenizer) -> Chunk:
    """The chunk of the empty prompt."""
    return make_chunk(tokenizer, (), ())


class ChunkFilling:
    """A chunk that is being filled, and those before it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.room = tokenizer.length - 2
        self.chunks: list[Chunk] = []
        self.ids: list[int] = []
        self.weights: list[float] = []

    def end(self, stop: int) -> None:
        """Ends the chunk before one of its tokens; that one starts the next."""
        self.chunks.append(make_chunk(self.tokenizer, self.ids[:stop], self.weights[:stop]))
        self.ids, self.weights = self.ids[stop:], self.weights[stop:]

    def add(self, ids: Sequence[int], weight: float) -> None:
        """Adds tokens for which there is room."""
        self.ids += ids
        self.weights += [weight] * len(ids)
