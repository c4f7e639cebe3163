"""Prompts to what the text encoder has to read, and what of it each step of the sampler sees.

All syntaxes end in one form: readings (token ids, a weight for each, which tokens may be attended to), texts (sums of
readings) and a schedule (which text each step sees).
"""

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from sdjax.diffusion import elementary
from sdjax.text import comfyui, compel, grammar
from sdjax.text.chunks import Chunk, a1111_chunks, comfyui_chunks, empty_chunk, make_chunk
from sdjax.text.tags import Tag, cut, look_alikes, uncut
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.words import Words

# What a prompt may ask for: beyond it no memory suffices. Each part that AND joins is a whole picture of the UNet in
# every step; its attention looks at all chunks of a text at once; and all chunks of all texts that a prompt becomes in
# its steps, and of Compel's masked ones, are encoded and kept together.
MAX_PARTS = 32
MAX_CHUNKS = 64
MAX_CHUNKS_OF_TEXTS = 1024
# Texts between the bars and colons of step switches and alternations, and letters of all texts that they become.
MAX_TEXTS_OF_STEPS = 1000
MAX_LETTERS_OF_TEXTS = 1_000_000
# How many problems of a prompt are told one by one.
_TOLD = 10
# Compel takes lesser weights for this one, at which almost nothing is left.
_LEAST_WEIGHT = 1e-5
# Letters of a name that is not there.
_SHOWN_NAME = 60
_NO_EMBEDDINGS: Mapping[str, int] = types.MappingProxyType({})


class PromptError(ValueError):
    """A prompt that asks for more than there is room for."""


class Reading(NamedTuple):
    """What the text encoder reads at once: chunks of its length, each with start, end and padding.

    ids, weights, mask: one tuple for each chunk. Ids from `words.FIRST_VECTOR` on are vectors of embeddings. Tokens
      whose mask is false are not attended to by others; None is a mask that is true everywhere.
    """

    ids: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    mask: tuple[tuple[bool, ...], ...] | None


class Text(NamedTuple):
    """A sum of weighted encodings of readings.

    mix: the indices of readings and their coefficients.
    chunks: of which it consists.
    """

    mix: tuple[tuple[int, float], ...]
    chunks: int


class Conditioning(NamedTuple):
    """A prompt and its negative, ready to be encoded.

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
    vectors: how many each of them has. The id `words.FIRST_VECTOR + k` is vector k of all in a row.
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


class _Sum(NamedTuple):
    """A text before its readings have indices."""

    mix: tuple[tuple[Reading, float], ...]
    tokens: int
    cut: str

    @property
    def chunks(self) -> int:
        return len(self.mix[0][0].ids)


class _Branch(NamedTuple):
    """A part of a prompt: its texts, each with the last step that sees it, and its weight."""

    ends: tuple[int, ...]
    sums: tuple[_Sum, ...]
    weight: float


class _Side(NamedTuple):
    """A prompt or a negative prompt."""

    branches: tuple[_Branch, ...]
    problems: tuple[grammar.Problem, ...]
    tags: tuple[Tag, ...] = ()


class _Syntax(NamedTuple):
    """How prompts are read.

    read: (words, prompt, whether it is the negative one, the pass of the sampler) -> the prompt.
    around_empty: as in `Conditioning`.
    even: whether shorter texts are filled up with chunks of the empty prompt.
    """

    read: Callable[[Words, str, bool, grammar.Pass], _Side]
    around_empty: bool
    even: bool


def condition(
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
) -> Conditioning:
    """Reads a prompt and its negative.

    Args:
      tokenizer: of the text encoder.
      prompt: any string.
      negative_prompt: any string.
      syntax: one of `SYNTAXES`. "a1111" is AUTOMATIC1111's grammar and chunks; "compel" is the package's, version 2;
        "comfyui" is ComfyUI's; "plain" takes every sign as text and cuts what does not fit in one chunk, as diffusers.
      emphasis: what weights do in "a1111": "original", "no_norm" (the same without restoring means) or "ignore".
      steps: of the sampler, at least 1.
      steps_before: of a second pass: those of the first; see `grammar.Pass`.
      followed: whether a second pass comes after it.
      embeddings: the names of embeddings which prompts may use, and how many vectors each has. A number is asked for
        only if its name is used.

    Raises:
      PromptError: for more parts, chunks or texts of steps than `MAX_PARTS` and the limits beside it allow.
    """
    words = Words(tokenizer, embeddings)
    kind = SYNTAXES[syntax]
    span = grammar.Pass(steps, steps_before, followed)
    positive = _read("prompt", kind, words, prompt, span)
    negative = _read("negative_prompt", kind, words, negative_prompt, span)
    branches = (*positive.branches, *negative.branches)
    if kind.even:
        most = max(text.chunks for branch in branches for text in branch.sums)
        branches = tuple(_fill(branch, most, tokenizer) for branch in branches)
    if syntax == "a1111" and emphasis == "ignore":
        branches = tuple(_without_weights(branch) for branch in branches)

    index = _Index()
    schedule = _schedule(branches, steps, index)
    readings = index.readings
    weighted = any(weight != 1 for reading in readings for row in reading.weights for weight in row)
    empty = None
    if kind.around_empty and weighted:
        most = max(len(reading.ids) for reading in readings)
        empty = readings.setdefault(_of_chunks([empty_chunk(tokenizer)] * most), len(readings))
    large = _larger_than_a_chunk(words) if syntax == "a1111" else ()
    tokens, chunks, cut = _account(branches[:-1])
    negative_tokens, negative_chunks, negative_cut = _account(branches[-1:])
    return Conditioning(
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
        problems=(*_told("prompt", positive.problems), *_told("negative_prompt", negative.problems), *large),
        tags=positive.tags,
        embeddings=tuple(words.named),
        vectors=tuple(map(len, words.named.values())),
    )


def _read(name: str, kind: _Syntax, words: Words, prompt: str, span: grammar.Pass) -> _Side:
    try:
        words.left.clear()
        side = kind.read(words, prompt, name == "negative_prompt", span)
        side = side._replace(problems=(*side.problems, *_left_alone(words, prompt)))
        _check("texts in all its steps together", _chunks_of_texts(side.branches), MAX_CHUNKS_OF_TEXTS, "chunks")
        return side
    except PromptError as error:
        raise PromptError(f"{name}: {error}") from None


def _left_alone(words: Words, prompt: str) -> Iterable[grammar.Problem]:
    for word, name in words.left.items():
        shown = word if len(word) <= _SHOWN_NAME else word[:_SHOWN_NAME] + "..."
        told = (
            f"{shown!r} is read as it stands, as no embedding has this name; if {name!r} is meant, write it without < >"
        )
        yield grammar.Problem(max(0, prompt.find(word)) + 1, told)


def _chunks_of_texts(branches: Iterable[_Branch]) -> int:
    """Of all different readings; what is filled up counts too."""
    readings = {id(reading): len(reading.ids) for branch in branches for text in branch.sums for reading, _ in text.mix}
    return sum(readings.values())


def _check(what: str, found: int, most: int, unit: str) -> None:
    if found > most:
        raise PromptError(f"{what}: {found} {unit}; expected up to {most}. Make it shorter")


class _Index:
    """Readings and texts, each once, and their places."""

    def __init__(self) -> None:
        self.readings: dict[Reading, int] = {}
        self.texts: dict[Text, int] = {}

    def place(self, text: _Sum) -> int:
        """Where a text is among the texts."""
        mix = tuple((self.readings.setdefault(reading, len(self.readings)), share) for reading, share in text.mix)
        return self.texts.setdefault(Text(mix, text.chunks), len(self.texts))


def _schedule(branches: Sequence[_Branch], steps: int, index: _Index) -> tuple[tuple[int, ...], ...]:
    """Which text each step and branch sees."""
    if all(len(branch.sums) == 1 for branch in branches):
        return (tuple(index.place(branch.sums[0]) for branch in branches),) * steps
    known: dict[tuple[int, int], int] = {}
    rows: dict[tuple[int, ...], tuple[int, ...]] = {}
    schedule = []
    for step in range(steps):
        row = []
        for number, branch in enumerate(branches):
            place = number, grammar.text_index(branch.ends, step)
            if place not in known:
                known[place] = index.place(branch.sums[place[1]])
            row.append(known[place])
        schedule.append(rows.setdefault(tuple(row), tuple(row)))
    return tuple(schedule)


def _account(branches: Sequence[_Branch]) -> tuple[int, int, str]:
    """Tokens, chunks and what was cut."""
    tokens = sum(max(text.tokens for text in branch.sums) for branch in branches)
    chunks = max(text.chunks for branch in branches for text in branch.sums)
    return tokens, chunks, " ".join(filter(None, (text.cut for branch in branches for text in branch.sums)))


def _told(name: str, problems: Sequence[grammar.Problem]) -> Iterable[str]:
    for letter, message in problems[:_TOLD]:
        yield f"{name}, letter {letter}: {message}"
    if len(problems) > _TOLD:
        yield f"{name}: and {len(problems) - _TOLD} more like these"


# --- Chunks ---


def _larger_than_a_chunk(words: Words) -> Iterable[str]:
    """The web UI has no way to draw these."""
    room = words.tokenizer.length - 2
    for name, ids in words.named.items():
        if len(ids) > room:
            yield (
                f"the embedding {name!r} has {len(ids)} vectors, and a chunk has room for {room}; take a smaller one, "
                f"or prompt_syntax = comfyui, which divides it: {comfyui.EMBEDDING}{name}"
            )


def _of_chunks(chunks: Sequence[Chunk]) -> Reading:
    return Reading(tuple(chunk.ids for chunk in chunks), tuple(chunk.weights for chunk in chunks), None)


def _longer(text: _Sum, chunks: int, tokenizer: Tokenizer) -> _Sum:
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


def _fill(branch: _Branch, chunks: int, tokenizer: Tokenizer) -> _Branch:
    return branch._replace(sums=tuple(_longer(text, chunks, tokenizer) for text in branch.sums))


def _without_weights(branch: _Branch) -> _Branch:
    return branch._replace(
        sums=tuple(
            text._replace(mix=tuple((_unweighted(reading), share) for reading, share in text.mix))
            for text in branch.sums
        )
    )


def _unweighted(reading: Reading) -> Reading:
    return reading._replace(weights=tuple((1.0,) * len(row) for row in reading.weights))


# --- AUTOMATIC1111 ---


def _read_a1111(words: Words, prompt: str, negative: bool, span: grammar.Pass) -> _Side:
    plain, problems = cut(prompt), []
    if negative:  # there the web UI takes tags for text
        told = "in a negative prompt an adapter is read as text; name it in the prompt, maybe with a weight below 0"
        problems = [grammar.Problem(letter, told) for letter in plain.letters]
        plain = uncut(prompt)
    else:
        told = "this looks like an adapter and is read as text; expected <lora:name:weight>, closed and without spaces"
        problems = [grammar.Problem(plain.letter(letter), told) for letter in look_alikes(plain.text)]
    problems += [grammar.Problem(letter, message) for letter, message in plain.problems]
    parsed = grammar.parse(plain.text, negative=negative)
    for letter, message in (*parsed.problems, *grammar.step_problems(parsed.switches, span)):
        problems.append(grammar.Problem(plain.letter(letter), message))
    _check("what AND joins", len(parsed.prompt.parts), MAX_PARTS, "parts")
    signs = sum(not isinstance(piece, str) for part in parsed.prompt.parts for piece in part.pieces)
    _check("step switches and alternations", signs, MAX_TEXTS_OF_STEPS, "brackets, bars and colons of theirs")
    branches = tuple(_a1111_branch(words, part, span) for part in parsed.prompt.parts)
    return _Side(branches, tuple(problems), plain.tags)


def _a1111_branch(words: Words, part: grammar.Part, span: grammar.Pass) -> _Branch:
    """A part, all of whose texts have as many chunks as the longest: the web UI encodes them as one batch."""
    known: dict[str, _Sum] = {}
    ends: list[int] = []
    sums: list[_Sum] = []
    letters = 0
    for end in grammar.boundaries(part.pieces, span):
        text = grammar.resolve(part.pieces, end, span)
        if text not in known:
            letters += len(text)
            _check("texts in all its steps together", letters, MAX_LETTERS_OF_TEXTS, "letters")
            chunks, tokens = a1111_chunks(words, text)
            _check("a text", len(chunks), MAX_CHUNKS, f"chunks of {words.tokenizer.length - 2} tokens")
            known[text] = _Sum(((_of_chunks(chunks), 1.0),), tokens, "")
        ends.append(end)
        sums.append(known[text])
    _check(
        "texts in all its steps together", len(known) * max(text.chunks for text in sums), MAX_CHUNKS_OF_TEXTS, "chunks"
    )
    branch = _Branch(tuple(ends), tuple(sums), part.weight)
    return branch if len(known) == 1 else _fill(branch, max(text.chunks for text in sums), words.tokenizer)


# --- Text without grammar, as diffusers reads it ---


def _tags_as_text(prompt: str) -> list[grammar.Problem]:
    told = "in this syntax adapters are not named so, and it is read as text; name them in loras or hypernetworks"
    return [grammar.Problem(letter, told) for letter in look_alikes(prompt)]


def _read_plain(words: Words, prompt: str, negative: bool, span: grammar.Pass) -> _Side:
    ids = words.encode(prompt)
    room = words.tokenizer.length - 2
    chunk = make_chunk(words.tokenizer, ids[:room], [1.0] * min(len(ids), room))
    text = _Sum(((_of_chunks([chunk]), 1.0),), len(ids), words.decode(ids[room:]))
    return _Side((_Branch((span.steps,), (text,), 1.0),), ())


# --- ComfyUI ---


def _read_comfyui(words: Words, prompt: str, negative: bool, span: grammar.Pass) -> _Side:
    parsed = comfyui.parse(prompt)
    chunks, tokens = comfyui_chunks(words, parsed.spans)
    _check("a text", len(chunks), MAX_CHUNKS, f"chunks of {words.tokenizer.length - 2} tokens")
    problems = sorted([*parsed.problems, *_not_there(words, prompt, parsed.spans), *_tags_as_text(prompt)])
    return _Side((_Branch((span.steps,), (_Sum(((_of_chunks(chunks), 1.0),), tokens, ""),), 1.0),), tuple(problems))


def _not_there(words: Words, prompt: str, spans: Sequence[grammar.Span]) -> Iterable[grammar.Problem]:
    """What ComfyUI leaves out or takes for text, though it looks like an embedding."""
    after = 0  # what was told lies before it, so that each is looked for where the last one ended

    def place(sought: str) -> int:
        nonlocal after
        at = prompt.find(sought, after)
        after = after if at < 0 else at + 1
        return max(0, at) + 1

    for named, text in (piece for span in spans for piece in comfyui.divide(span.text)):
        if named is not None and words.called(named)[0] is None:
            if named:
                yield grammar.Problem(place(comfyui.EMBEDDING + named), _no_embedding(words, named))
            else:
                told = f"{comfyui.EMBEDDING} names nothing; put a name directly behind it"
                yield grammar.Problem(place(comfyui.EMBEDDING), told)
        before, sign, _ = text.partition(comfyui.EMBEDDING)
        if sign:
            letter = place(before + sign) + len(before)
            yield grammar.Problem(letter, f"{sign} within a word names nothing; put a space before it")


def _no_embedding(words: Words, named: str) -> str:
    name = named.strip(",")
    shown = name if len(name) <= _SHOWN_NAME else name[:_SHOWN_NAME] + "..."
    return f"there is no embedding {shown!r}{words.near(name[:_SHOWN_NAME])}"


# --- Compel ---


class _Row(NamedTuple):
    """A chunk, and which of its tokens may be attended to."""

    chunk: Chunk
    mask: tuple[bool, ...] | None


class _RowSum(NamedTuple):
    """What becomes one chunk of a text."""

    mix: tuple[tuple[_Row, float], ...]
    tokens: int
    cut: str


def _read_compel(words: Words, prompt: str, negative: bool, span: grammar.Pass) -> _Side:
    parsed = compel.parse(prompt)
    _check("what .and() joins", len(parsed.parts), MAX_CHUNKS, "prompts")
    rows: list[_RowSum] = []
    for part in parsed.parts:
        rows.append(_compel_row(words, part))
        readings = 1 + sum(len(row.mix) - 1 for row in rows)
        what = "texts of .blend() and of weights below 1, each of which is encoded apart"
        _check(what, readings * len(parsed.parts), MAX_CHUNKS_OF_TEXTS, "chunks")
    text = _Sum(_side_by_side(rows), sum(row.tokens for row in rows), " ".join(filter(None, (row.cut for row in rows))))
    problems = (*parsed.problems, *_tags_as_text(prompt))
    if negative and parsed.tags:
        told = "an adapter acts on the whole picture; name it in the prompt, maybe with a weight below 0"
        problems = (*problems, grammar.Problem(prompt.find("Lora") + 1, told))
    return _Side((_Branch((span.steps,), (text,), 1.0),), problems, parsed.tags)


def _compel_row(words: Words, part: compel.Part) -> _RowSum:
    """One part of a conjunction: a sum over the prompts of a blend."""
    mix: dict[_Row, float] = {}
    tokens, cut = 0, []
    for fragments, share in part.sum:
        rows, ids = _compel_rows(words, fragments)
        for row, of_row in rows:
            weighted = tuple(weight * part.weight for weight in row.chunk.weights)
            key = row._replace(chunk=row.chunk._replace(weights=weighted))
            mix[key] = mix.get(key, 0.0) + of_row * share
        tokens = max(tokens, len(ids))
        cut.append(words.decode(ids[words.tokenizer.length - 2 :]))
    return _RowSum(tuple(mix.items()), tokens, " ".join(filter(None, cut)))


def _compel_rows(words: Words, fragments: Sequence[compel.Fragment]) -> tuple[list[tuple[_Row, float]], list[int]]:
    """The chunk of a prompt, and the same without each fragment that weighs less than 1; and all tokens.

    As `get_embeddings_for_weighted_prompt_fragments` of the package: the less a fragment weighs, the more weighs the
    encoding in which nothing attends to it.
    """
    tokenizer = words.tokenizer
    room = tokenizer.length - 2
    ids: list[int] = []
    weights: list[float] = []
    without: list[tuple[int, int, float]] = []
    for text, weight in fragments:
        tokens = words.encode(text)
        # The package cuts each fragment, and then their row.
        first, last = 1 + len(ids), len(ids) + min(len(tokens), room)
        if tokens and weight < 1 and first <= room:
            # Of a fragment that is cut, the end goes too.
            without.append((first, last if last <= room else room + 1, weight))
        ids += tokens
        weights += [weight] * len(tokens)
    chunk = make_chunk(tokenizer, ids[:room], weights[:room])
    rows = [(_Row(chunk, None), 1.0)]
    for first, last, weight in without:
        mask = tuple(not first <= at <= last for at in range(tokenizer.length))
        rows.append((_Row(chunk, mask), elementary.tan((1 - max(_LEAST_WEIGHT, weight)) * math.pi / 2)))
    total = sum(share for _, share in rows)
    return [(row, share / total) for row, share in rows], ids


def _side_by_side(sums: Sequence[_RowSum]) -> tuple[tuple[Reading, float], ...]:
    """The sum of readings which has these sums as its chunks.

    All readings but the first differ from it in one chunk. Shares sum up to 1 in each chunk, unless there is only one.
    """
    first = [row_sum.mix[0] for row_sum in sums]
    if len(sums) == 1:
        return tuple((_of_rows([row]), share) for row, share in sums[0].mix)
    others = []
    for index, row_sum in enumerate(sums):
        for row, share in row_sum.mix[1:]:
            rows = [base for base, _ in first]
            rows[index] = row
            others.append((_of_rows(rows), share))
    rest = 1.0 - sum(share for _, share in others)
    return ((_of_rows([row for row, _ in first]), rest), *others)


def _of_rows(rows: Sequence[_Row]) -> Reading:
    reading = _of_chunks([row.chunk for row in rows])
    if all(row.mask is None for row in rows):
        return reading
    return reading._replace(mask=tuple(row.mask or (True,) * len(row.chunk.ids) for row in rows))


SYNTAXES = {
    "a1111": _Syntax(_read_a1111, around_empty=False, even=False),
    "compel": _Syntax(_read_compel, around_empty=True, even=True),
    "comfyui": _Syntax(_read_comfyui, around_empty=True, even=False),
    "plain": _Syntax(_read_plain, around_empty=False, even=False),
}
