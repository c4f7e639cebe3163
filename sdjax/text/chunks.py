"""Token ids in rows of the text encoder's length: how each syntax fills them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sdjax.text import comfyui, grammar
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.words import FIRST_VECTOR, Words

# How far back the web UI looks for a comma at which to end a chunk, in tokens: its setting's default.
COMMA_BACK_OFF = 20
# From how many tokens on ComfyUI takes a span apart to fill a chunk; shorter ones go whole into the next.
COMFYUI_LARGE = 8


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


class _Filling:
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


def a1111_chunks(words: Words, text: str) -> tuple[list[Chunk], int]:
    """The chunks of a resolved text, and how many tokens it has; an embedding counts as many as it has vectors.

    As `tokenize_line` of the web UI (`modules/sd_hijack_clip.py`, version 1.10): a chunk that is full ends at its last
    comma if that is near, `BREAK` ends it at once, and what is left of it is padding. An embedding for which there is
    no room starts the next chunk. (Where such a comma takes an embedding to the next chunk, the web UI leaves its
    vectors behind, and reads `!` in their place. Here they go with the text.)
    """
    tokenizer = words.tokenizer
    filling = _Filling(tokenizer)
    room = filling.room
    comma = -1
    total = 0
    for span in grammar.weigh(text):
        if span == grammar.BREAK:
            filling.end(len(filling.ids))
            comma = -1
            continue
        for ids in _a1111_groups(words, span.text):
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


def _a1111_groups(words: Words, text: str) -> Iterator[Sequence[int]]:
    """The ids of a span: of each embedding, and of each token between them."""
    for piece, name, open_ in words.pieces(text):
        if name is not None:
            yield words.ids(name)
            continue
        tokens = words.tokenizer.encode(piece)
        position = 0
        while position < len(tokens):
            found = words.at(tokens, position) if open_ else None
            yield [tokens[position]] if found is None else words.ids(found.name)
            position += 1 if found is None else found.length


def _padded_after_end(tokenizer: Tokenizer, chunk: Chunk) -> Chunk:
    """The chunk with padding after its first end, even where a prompt has an end token in it."""
    if tokenizer.end == tokenizer.padding:
        return chunk
    first = chunk.ids.index(tokenizer.end) + 1
    # Vectors are put in after that.
    rest = tuple(index if index >= FIRST_VECTOR else tokenizer.padding for index in chunk.ids[first:])
    return Chunk(chunk.ids[:first] + rest, chunk.weights)


def comfyui_chunks(words: Words, spans: Sequence[grammar.Span]) -> tuple[list[Chunk], int]:
    """The chunks of weighted spans, and how many tokens they have; an embedding counts as many as it has vectors.

    As `tokenize_with_weights` of ComfyUI (`comfy/sd1_clip.py`): a short span is never divided, nor are the vectors of
    an embedding if they are few. An embedding that is not there is left out.
    """
    filling = _Filling(words.tokenizer)
    room = filling.room
    total = 0
    for span in spans:
        for tokens in _comfyui_groups(words, span.text):
            total += len(tokens)
            # ComfyUI itself never ends with a short span that is longer than a chunk.
            large = len(tokens) >= min(COMFYUI_LARGE, room)
            while len(filling.ids) + len(tokens) > room:
                fitting = room - len(filling.ids) if large else 0
                filling.add(tokens[:fitting], span.weight)
                tokens = tokens[fitting:]
                filling.end(room)
            filling.add(tokens, span.weight)
    filling.end(room)
    return filling.chunks, total


def _comfyui_groups(words: Words, text: str) -> Iterator[Sequence[int]]:
    """The ids of a span: of each embedding, and of each text between them."""
    for piece in comfyui.divide(text):
        name, behind = (None, "") if piece.named is None else words.called(piece.named)
        if name is not None:
            yield words.ids(name)
        yield words.tokenizer.encode(" ".join(filter(None, (behind, piece.text))))
