"""The form in which every prompt syntax ends: weighted sums of what the text encoder reads.

A syntax reads a prompt into branches (parts that `AND` joins, or the whole), each with the texts that its steps see; a
text is a weighted sum of readings, and a reading is chunks of token ids.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sdjax.text.chunks import Chunk, empty_chunk
from sdjax.text.problems import Problem
from sdjax.text.tags import Tag, look_alikes
from sdjax.text.tokenizer import Tokenizer

# What a prompt may ask for: beyond it no memory suffices. Each part that AND joins is a whole image for the UNet in
# every step; its attention looks at all chunks of a text at once; and all chunks of all texts that a prompt becomes in
# its steps, and of Compel's masked ones, are encoded and kept together.
MAX_PARTS = 32
MAX_CHUNKS = 64
MAX_CHUNKS_OF_TEXTS = 1024
# Texts between the bars and colons of step switches and alternations, and letters of all texts that they become.
MAX_TEXTS_OF_STEPS = 1000
MAX_LETTERS_OF_TEXTS = 1_000_000
# Characters that problems quote of a name.
LONGEST_NAME = 60


class PromptError(ValueError):
    """A prompt that asks for more than there is room for."""


def check_limit(what: str, found: int, most: int, unit: str) -> None:
    """Raises `PromptError` if there is more of something than a prompt may have."""
    if found > most:
        raise PromptError(f"{what}: {found} {unit}; expected up to {most}. Make it shorter")


class Reading(NamedTuple):
    """What the text encoder reads at once: chunks of its length, each with start, end and padding.

    ids, weights, mask: one tuple for each chunk. Ids from `prompt_tokenizer.FIRST_VECTOR` on are vectors of embeddings.
      Tokens whose mask is false are not attended to by others; None is a mask that is true everywhere.
    """

    ids: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    mask: tuple[tuple[bool, ...], ...] | None


class WeightedReadings(NamedTuple):
    """A text: a weighted sum of the encodings of readings.

    mix: readings, all of as many chunks, and their coefficients.
    tokens: how many it has, without start, end and padding.
    cut: what did not fit; empty if all did.
    """

    mix: tuple[tuple[Reading, float], ...]
    tokens: int
    cut: str

    @property
    def chunks(self) -> int:
        """How many each reading has."""
        return len(self.mix[0][0].ids)


class Branch(NamedTuple):
    """A part of a prompt that `AND` joins, or all of it.

    ends: the last step that sees each text, counted from 1.
    sums: the texts.
    weight: of the part.
    """

    ends: tuple[int, ...]
    sums: tuple[WeightedReadings, ...]
    weight: float


class ReadPrompt(NamedTuple):
    """A prompt or a negative prompt that was read; `tags` are the adapters that it names."""

    branches: tuple[Branch, ...]
    problems: tuple[Problem, ...]
    tags: tuple[Tag, ...] = ()


def reading_of(chunks: Sequence[Chunk]) -> Reading:
    """The reading of some chunks, without a mask."""
    return Reading(tuple(chunk.ids for chunk in chunks), tuple(chunk.weights for chunk in chunks), None)


def chunks_of_texts(branches: Iterable[Branch]) -> int:
    """The number of chunks of all different readings; what is filled up counts too."""
    readings = {id(reading): len(reading.ids) for branch in branches for text in branch.sums for reading, _ in text.mix}
    return sum(readings.values())


def lengthen(text: WeightedReadings, chunks: int, tokenizer: Tokenizer) -> WeightedReadings:
    """The same text with chunks of the empty prompt behind it."""
    missing = chunks - text.chunks
    if not missing:
        return text
    ids, weights = empty_chunk(tokenizer)
    everywhere = (True,) * len(ids)
    mix = tuple(
        (
            Reading(
                reading.ids + (ids,) * missing,
                reading.weights + (weights,) * missing,
                None if reading.mask is None else reading.mask + (everywhere,) * missing,
            ),
            share,
        )
        for reading, share in text.mix
    )
    return text._replace(mix=mix)


def fill(branch: Branch, chunks: int, tokenizer: Tokenizer) -> Branch:
    """A branch all of whose texts have so many chunks."""
    return branch._replace(sums=tuple(lengthen(text, chunks, tokenizer) for text in branch.sums))


def without_weights(branch: Branch) -> Branch:
    """A branch whose tokens all weigh 1."""
    return branch._replace(
        sums=tuple(
            text._replace(mix=tuple((_unweighted(reading), share) for reading, share in text.mix))
            for text in branch.sums
        )
    )


def _unweighted(reading: Reading) -> Reading:
    return reading._replace(weights=tuple((1.0,) * len(row) for row in reading.weights))


def tags_as_text(prompt: str) -> list[Problem]:
    """The problems of a syntax in which `<lora:name:1>` is text."""
    message = "in this syntax adapters are not named so, and it is read as text; name them in loras or hypernetworks"
    return [Problem(letter, message) for letter in look_alikes(prompt)]
