"""A prompt and its negative prompt as token ids with weights, and which of them each step of the sampler sees.

All syntaxes end in one form: readings (token ids, a weight for each, which tokens may be attended to), texts (sums of
readings) and a schedule (which text each step sees).
"""

import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from sdjax import extensions
from sdjax.text.a1111 import read_a1111
from sdjax.text.chunks import empty_chunk
from sdjax.text.comfyui import EMBEDDING, read_comfyui
from sdjax.text.compel import read_compel
from sdjax.text.plain import read_plain
from sdjax.text.problems import Problem, shortened
from sdjax.text.prompt_editing import Pass, text_index
from sdjax.text.prompt_tokenizer import PromptTokenizer
from sdjax.text.readings import (
    LONGEST_NAME,
    MAX_CHUNKS_OF_TEXTS,
    Branch,
    PromptError,
    Reading,
    ReadPrompt,
    WeightedReadings,
    check_limit,
    chunks_of_texts,
    fill,
    reading_of,
    without_weights,
)
from sdjax.text.tags import Tag
from sdjax.text.tokenizer import Tokenizer

# How many problems of a prompt are listed one by one.
_MOST_PROBLEMS = 10
# Prompts that are kept as they were read: negative prompts come again and again, and prompts with every seed.
_MOST_READ = 256
_NO_EMBEDDINGS: Mapping[str, int] = types.MappingProxyType({})


class Text(NamedTuple):
    """A sum of weighted encodings of readings.

    mix: the indices of readings and their coefficients.
    chunks: of which it consists.
    """

    mix: tuple[tuple[int, float], ...]
    chunks: int


class TokenizedPrompt(NamedTuple):
    """A prompt and its negative prompt, ready for the text encoder.

    readings: all different, in the order of first use.
    texts: all different.
    schedule: for each step of the sampler the text of each branch; the branches are the parts of the prompt which
      `AND` joins, in order, and then the negative prompt.
    part_weights: of the parts.
    around_empty: whether weights scale the distance from the encoding of the empty prompt, and not from 0.
    normalise: whether each weighted chunk is scaled back to its mean before (AUTOMATIC1111's rule).
    empty: the reading of the empty prompt, where weights act around it.
    tokens, negative_tokens: how many the texts have, without start, end and padding; of a text that changes from step
      to step, the longest; all parts together.
    chunks, negative_chunks: of the longest text.
    cut, negative_cut: the text that did not fit; empty if all did.
    problems: what could not be read as it was probably meant.
    tags: adapters that the prompt names.
    embeddings: those that the prompts name, in the order of first use.
    vectors: how many each of them has. The id `prompt_tokenizer.FIRST_VECTOR + k` is vector k of all in a row.
    """

    readings: tuple[Reading, ...]
    texts: tuple[Text, ...]
    schedule: tuple[tuple[int, ...], ...]
    part_weights: tuple[float, ...]
    around_empty: bool
    normalise: bool
    empty: int | None
    tokens: int
    chunks: int
    cut: str
    negative_tokens: int
    negative_chunks: int
    negative_cut: str
    problems: tuple[str, ...]
    tags: tuple[Tag, ...]
    embeddings: tuple[str, ...]
    vectors: tuple[int, ...]


class Syntax(NamedTuple):
    """A prompt syntax.

    read: (tokenizer, prompt, whether it is the negative one, the pass of the sampler) -> the prompt.
    around_empty: as in `TokenizedPrompt`.
    even: whether shorter texts are filled up with chunks of the empty prompt.
    """

    read: Callable[[PromptTokenizer, str, bool, Pass], ReadPrompt]
    around_empty: bool
    even: bool


def tokenize_prompt(
    tokenizer: Tokenizer,
    prompt: str,
    negative_prompt: str,
    *,
    syntax: str,
    emphasis: str,
    steps: int,
    steps_before: int | None = None,
    followed: bool = False,
    embeddings: Mapping[str, int] = _NO_EMBEDDINGS,
) -> TokenizedPrompt:
    """Reads a prompt and its negative prompt in one of the syntaxes, and tokenizes them.

    Args:
      tokenizer: of the text encoder.
      prompt: any string.
      negative_prompt: any string.
      syntax: of `syntax_row`. "a1111" is AUTOMATIC1111's grammar and chunks; "compel" is the package's, version 2;
        "comfyui" is ComfyUI's; "plain" takes every sign as text and cuts what does not fit in one chunk, as diffusers.
      emphasis: what weights do in "a1111": "original", "no_norm" (the same without restoring means) or "ignore".
      steps: of the sampler, at least 1.
      steps_before: of a second pass: those of the first; see `Pass`.
      followed: whether a second pass comes after it.
      embeddings: the names of embeddings which prompts may use, and how many vectors each has. A number is asked for
        only if its name is used.

    Raises:
      PromptError: for more parts, chunks or texts of steps than `MAX_PARTS` and the limits beside it allow.
    """
    prompt_tokenizer = PromptTokenizer(tokenizer, embeddings)
    kind = syntax_row(syntax)
    span = Pass(steps, steps_before, followed)
    positive = _read("prompt", kind, prompt_tokenizer, prompt, span)
    negative = _read("negative_prompt", kind, prompt_tokenizer, negative_prompt, span)
    branches = (*positive.branches, *negative.branches)
    if kind.even:
        most = max(text.chunks for branch in branches for text in branch.sums)
        branches = tuple(fill(branch, most, tokenizer) for branch in branches)
    if syntax == "a1111" and emphasis == "ignore":
        branches = tuple(without_weights(branch) for branch in branches)

    index = _Index()
    schedule = _schedule(branches, steps, index)
    readings = index.readings
    weighted = any(weight != 1 for reading in readings for row in reading.weights for weight in row)
    empty = None
    if kind.around_empty and weighted:
        most = max(len(reading.ids) for reading in readings)
        empty = readings.setdefault(reading_of([empty_chunk(tokenizer)] * most), len(readings))
    large = _larger_than_a_chunk(prompt_tokenizer) if syntax == "a1111" else ()
    tokens, chunks, cut = _account(branches[:-1])
    negative_tokens, negative_chunks, negative_cut = _account(branches[-1:])
    return TokenizedPrompt(
        readings=tuple(readings),
        texts=tuple(index.texts),
        schedule=schedule,
        part_weights=tuple(branch.weight for branch in branches[:-1]),
        around_empty=empty is not None,
        normalise=syntax == "a1111" and emphasis == "original" and weighted,
        empty=empty,
        tokens=tokens,
        chunks=chunks,
        cut=cut,
        negative_tokens=negative_tokens,
        negative_chunks=negative_chunks,
        negative_cut=negative_cut,
        problems=(*_listed("prompt", positive.problems), *_listed("negative_prompt", negative.problems), *large),
        tags=positive.tags,
        embeddings=tuple(prompt_tokenizer.embeddings),
        vectors=tuple(map(len, prompt_tokenizer.embeddings.values())),
    )


def _read(name: str, kind: Syntax, prompt_tokenizer: PromptTokenizer, prompt: str, span: Pass) -> ReadPrompt:
    """A prompt as it is read; where no embedding can be in it, one that comes again is read once."""
    if prompt_tokenizer.has_embeddings:
        return _read_once(name, kind, prompt_tokenizer, prompt, span)
    return _read_plain(name, kind, prompt_tokenizer.tokenizer, prompt, span)


@functools.lru_cache(maxsize=_MOST_READ)
def _read_plain(name: str, kind: Syntax, tokenizer: Tokenizer, prompt: str, span: Pass) -> ReadPrompt:
    return _read_once(name, kind, PromptTokenizer(tokenizer, _NO_EMBEDDINGS), prompt, span)


def _read_once(name: str, kind: Syntax, prompt_tokenizer: PromptTokenizer, prompt: str, span: Pass) -> ReadPrompt:
    try:
        prompt_tokenizer.left_as_text.clear()
        result = kind.read(prompt_tokenizer, prompt, name == "negative_prompt", span)
        result = result._replace(problems=(*result.problems, *_left_as_text(prompt_tokenizer, prompt)))
        check_limit("texts in all its steps together", chunks_of_texts(result.branches), MAX_CHUNKS_OF_TEXTS, "chunks")
        return result
    except PromptError as error:
        raise PromptError(f"{name}: {error}") from None


def _left_as_text(prompt_tokenizer: PromptTokenizer, prompt: str) -> Iterable[Problem]:
    """Names of embeddings within other words in angle brackets."""
    for word, name in prompt_tokenizer.left_as_text.items():
        quoted = shortened(word, LONGEST_NAME)
        message = (
            f"{quoted} is read as it stands, as no embedding has this name; if {name!r} is meant, write it without < >"
        )
        yield Problem(max(0, prompt.find(word)) + 1, message)


class _Index:
    """Readings and texts, each once, and their places."""

    def __init__(self) -> None:
        self.readings: dict[Reading, int] = {}
        self.texts: dict[Text, int] = {}

    def place(self, text: WeightedReadings) -> int:
        """Where a text is among the texts."""
        mix = tuple((self.readings.setdefault(reading, len(self.readings)), share) for reading, share in text.mix)
        return self.texts.setdefault(Text(mix, text.chunks), len(self.texts))


def _schedule(branches: Sequence[Branch], steps: int, index: _Index) -> tuple[tuple[int, ...], ...]:
    """Which text each step and branch sees."""
    if all(len(branch.sums) == 1 for branch in branches):
        return (tuple(index.place(branch.sums[0]) for branch in branches),) * steps
    known: dict[tuple[int, int], int] = {}
    rows: dict[tuple[int, ...], tuple[int, ...]] = {}
    schedule = []
    for step in range(steps):
        row = []
        for number, branch in enumerate(branches):
            place = number, text_index(branch.ends, step)
            if place not in known:
                known[place] = index.place(branch.sums[place[1]])
            row.append(known[place])
        schedule.append(rows.setdefault(tuple(row), tuple(row)))
    return tuple(schedule)


def _account(branches: Sequence[Branch]) -> tuple[int, int, str]:
    """Tokens, chunks and what was cut."""
    tokens = sum(max(text.tokens for text in branch.sums) for branch in branches)
    chunks = max(text.chunks for branch in branches for text in branch.sums)
    return tokens, chunks, " ".join(filter(None, (text.cut for branch in branches for text in branch.sums)))


def _listed(name: str, problems: Sequence[Problem]) -> Iterable[str]:
    for letter, message in problems[:_MOST_PROBLEMS]:
        yield f"{name}, letter {letter}: {message}"
    if len(problems) > _MOST_PROBLEMS:
        yield f"{name}: and {len(problems) - _MOST_PROBLEMS} more like these"


def _larger_than_a_chunk(prompt_tokenizer: PromptTokenizer) -> Iterable[str]:
    """The web UI has no way to draw these."""
    room = prompt_tokenizer.tokenizer.length - 2
    for name, ids in prompt_tokenizer.embeddings.items():
        if len(ids) > room:
            yield (
                f"the embedding {name!r} has {len(ids)} vectors, and a chunk has room for {room}; take a smaller one, "
                f"or prompt_syntax = comfyui, which divides it: {EMBEDDING}{name}"
            )


SYNTAXES: Mapping[str, Syntax] = {
    "a1111": Syntax(read_a1111, around_empty=False, even=False),
    "compel": Syntax(read_compel, around_empty=True, even=True),
    "comfyui": Syntax(read_comfyui, around_empty=True, even=False),
    "plain": Syntax(read_plain, around_empty=False, even=False),
}


def syntax_row(name: str) -> Syntax:
    """The row of a prompt syntax, of this package or another.

    Raises:
      KeyError: if there is none.
      ExtensionError: if it is another package's and can't be used.
    """
    return extensions.row_named(name, SYNTAXES, extensions.SYNTAXES, Syntax)
