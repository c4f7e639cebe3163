"""Prompts to arrays: what of a prompt's readings the program of a batch is given, and what it makes of it."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from sdjax.diffusion.tableau import Table
from sdjax.engine.inputs import PromptTokens
from sdjax.families.family import Conditioning, Family, Networks, Tokens
from sdjax.text.prompt_tokenizer import FIRST_VECTOR
from sdjax.text.tokenize_prompt import TokenizedPrompt

# Numbers of readings, texts and chunks are rounded up to these, so that few programs serve many prompts.
_SIZES = tuple(itertools.chain.from_iterable((2**n, 3 * 2 ** (n - 1)) for n in range(1, 20)))


class PromptShape(NamedTuple):
    """What of prompts is part of a compiled program.

    readings, texts, chunks: rounded up.
    branches: predictions of the network per evaluation: parts of the prompt, then the negative prompt.
    guided: whether the last branch is the negative prompt, and guidance goes away from it.
    masked: whether some tokens are not to be attended to.
    vectors: of embeddings that are read, rounded up; 0 if there are none.
    """

    readings: int
    texts: int
    chunks: int
    branches: int
    guided: bool
    masked: bool
    vectors: int


class PromptSelection(NamedTuple):
    """The part of a prompt's readings that an image uses.

    branches: columns of its schedule.
    readings, texts: indices of those that are used.
    embeddings: names of those that are read.
    """

    prompt: TokenizedPrompt
    branches: tuple[int, ...]
    readings: tuple[int, ...]
    texts: tuple[int, ...]
    embeddings: tuple[str, ...]
    shape: PromptShape


def select(prompt: TokenizedPrompt, branches: tuple[int, ...], guided: bool) -> PromptSelection:
    """Leaves out what an image does not need.

    Args:
      prompt: its prompts as they are read.
      branches: the columns of the schedule that count.
      guided: whether the last of them is the negative prompt.
    """
    rows = dict.fromkeys(prompt.schedule)
    texts = tuple(dict.fromkeys(row[branch] for row in rows for branch in branches))
    needed = dict.fromkeys(index for text in texts for index, _ in prompt.texts[text].mix)
    if prompt.empty is not None:
        needed[prompt.empty] = None
    readings = tuple(needed)
    ids = {index for reading in readings for chunk in prompt.readings[reading].ids for index in chunk}
    learned = {name: rows for name, rows in _rows(prompt).items() if any(FIRST_VECTOR + row in ids for row in rows)}
    vectors = max((rows.stop for rows in learned.values()), default=0)
    shape = PromptShape(
        readings=_rounded(max(len(readings), len(branches))),
        texts=_rounded(max(len(texts), len(branches))),
        chunks=_rounded(max(len(prompt.readings[index].ids) for index in readings)),
        branches=len(branches),
        guided=guided,
        masked=any(prompt.readings[index].mask is not None for index in readings),
        vectors=_rounded(vectors) if vectors else 0,
    )
    return PromptSelection(prompt, branches, readings, texts, tuple(learned), shape)


def _rounded(count: int) -> int:
    return count if count == 1 else next(size for size in _SIZES if size >= count)


class PromptArrays(NamedTuple):
    """The prompts of a batch: what has images first, and what has them second (as in `sdjax.engine.inputs`)."""

    tokens: PromptTokens
    text_of: Int32[np.ndarray, "e b p"]
    part_weights: Float32[np.ndarray, "q b"]


def arrays(
    images: Sequence[PromptSelection],
    tables: Sequence[Table],
    clip_skips: Sequence[int],
    rows: int,
    vectors: Sequence[Sequence[Float[np.ndarray, "_ e"]]] = (),
) -> PromptArrays:
    """The arrays of images of one shape.

    Args:
      images: what of their prompts is used.
      tables: of their samplers.
      clip_skips: how many of the text encoder's last layers each leaves out.
      rows: evaluations; filled up with copies of the last.
      vectors: of each image those of each of its `embeddings`, in their order. Not needed where the shape has none.
    """
    shape = images[0].shape
    length = len(images[0].prompt.readings[0].ids[0])
    size = (len(images), shape.readings, shape.chunks, length)
    ids, weights, mask = np.zeros(size, np.int32), np.ones(size, np.float32), np.ones(size, bool)
    mix = np.zeros((len(images), shape.texts, shape.readings), np.float32)
    chunks = np.ones((len(images), shape.texts), np.int32)
    empty = np.zeros((len(images), shape.readings), np.float32)
    text_of = np.zeros((rows, len(images), shape.branches), np.int32)
    for number, (image, table) in enumerate(zip(images, tables, strict=True)):
        whole = image.prompt
        for place in range(shape.readings):
            index = image.readings[min(place, len(image.readings) - 1)]
            reading = whole.readings[index]
            chosen = [min(chunk, len(reading.ids) - 1) for chunk in range(shape.chunks)]
            ids[number, place] = [reading.ids[chunk] for chunk in chosen]
            weights[number, place] = [reading.weights[chunk] for chunk in chosen]
            if reading.mask is not None:
                mask[number, place] = [reading.mask[chunk] for chunk in chosen]
        for place, text in enumerate(image.texts):
            for index, share in whole.texts[text].mix:
                mix[number, place, image.readings.index(index)] += share
            chunks[number, place] = whole.texts[text].chunks
        if whole.empty is not None:
            empty[number, image.readings.index(whole.empty)] = 1
        steps = np.minimum(table.step, len(whole.schedule) - 1)
        places = {text: place for place, text in enumerate(image.texts)}
        by_step = [[places[whole.schedule[step][branch]] for branch in image.branches] for step in steps]
        text_of[:, number] = [*by_step, *by_step[-1:] * (rows - len(by_step))]
    parts = shape.branches - shape.guided
    part_weights = [[_part_weight(image, branch) for image in images] for branch in range(parts)]
    return PromptArrays(
        PromptTokens(
            ids=ids,
            weights=weights,
            mask=mask if shape.masked else None,
            mix=mix,
            chunks=chunks,
            empty=empty,
            normalise=np.array([image.prompt.normalise for image in images]),
            clip_skip=np.array(clip_skips, np.int32),
            vectors=np.stack(list(map(_placed, images, vectors))) if shape.vectors else None,
        ),
        text_of=text_of,
        part_weights=np.array(part_weights, np.float32).reshape(parts, len(images)),
    )


def _part_weight(image: PromptSelection, branch: int) -> float:
    weights = image.prompt.part_weights
    return weights[branch] if branch < len(weights) else 1.0


def _placed(image: PromptSelection, vectors: Sequence[Float[np.ndarray, "_ e"]]) -> Float[np.ndarray, "r e"]:
    """The vectors of an image, each in the row that its id says; other rows are never read."""
    placed = np.zeros((image.shape.vectors, vectors[0].shape[1]), np.float32)
    rows = _rows(image.prompt)
    for name, each in zip(image.embeddings, vectors, strict=True):
        placed[rows[name].start : rows[name].stop] = each
    return placed


def _rows(prompt: TokenizedPrompt) -> dict[str, range]:
    """In which rows the vectors of each embedding are."""
    starts = itertools.accumulate(prompt.vectors, initial=0)
    named = zip(prompt.embeddings, starts, prompt.vectors, strict=False)
    return {name: range(start, start + count) for name, start, count in named}


def encode(family: Family, networks: Networks, prompts: PromptTokens, end: int) -> Conditioning:
    """The encodings of a batch of prompts, weighted and mixed to texts; `b t` are images and their texts.

    Args:
      family: of the model.
      networks: of the model.
      prompts: of the batch.
      end: the id of the token that ends a text.
    """
    batch, readings, chunks, length = prompts.ids.shape
    flat = (batch * readings * chunks, length)
    states = family.encode_text(
        networks,
        Tokens(
            ids=prompts.ids.reshape(flat),
            mask=None if prompts.mask is None else prompts.mask.reshape(flat),
            clip_skip=jnp.repeat(prompts.clip_skip, readings * chunks),
            vectors=None if prompts.vectors is None else jnp.repeat(prompts.vectors, readings * chunks, axis=0),
            end=end,
        ),
    )
    hidden = states.hidden.reshape(batch, readings, chunks, length, -1)
    texts = _mixed(_weighted(hidden.astype(jnp.float32), prompts), prompts.mix)
    context = texts.astype(hidden.dtype).reshape(batch, prompts.mix.shape[1], chunks * length, -1)
    pooled = None
    if states.pooled is not None:  # of the first chunk
        first = states.pooled.reshape(batch, readings, chunks, -1)[:, :, 0]
        pooled = _mixed(first.astype(jnp.float32), prompts.mix).astype(first.dtype)
    if chunks == 1:
        return Conditioning(context, None, pooled)
    there = jnp.arange(chunks)[None, None] < prompts.chunks[..., None]
    return Conditioning(context, jnp.repeat(there, length, axis=-1), pooled)


def _weighted(states: Float[Array, "b k c n e"], prompts: PromptTokens) -> Float[Array, "b k c n e"]:
    """Each token's state, its distance from 0 or from the empty prompt's scaled; 1 changes nothing, to the bit."""
    weights = prompts.weights[..., None]
    empty = jnp.sum(states * prompts.empty[:, :, None, None, None], axis=1, keepdims=True)
    scaled = empty + (states - empty) * weights
    means = scaled.mean(axis=(-2, -1), keepdims=True)
    restored = scaled * (states.mean(axis=(-2, -1), keepdims=True) / jnp.where(means == 0, 1.0, means))
    scaled = jnp.where(prompts.normalise[:, None, None, None, None], restored, scaled)
    plain = (weights == 1).all(axis=(-2, -1), keepdims=True)
    return jnp.where(plain, states, scaled)


def _mixed(states: Float[Array, "b k *s"], mix: Float[Array, "b t k"]) -> Float[Array, "b t *s"]:
    """Sums of readings; a reading of coefficient 0 counts for nothing, whatever it holds."""
    total = jnp.zeros((states.shape[0], mix.shape[1], *states.shape[2:]), states.dtype)
    for index in range(states.shape[1]):
        share = mix[:, :, index].reshape(*mix.shape[:2], *(1,) * (states.ndim - 2))
        total = total + jnp.where(share == 0, 0.0, share * states[:, index][:, None])
    return total


def by_branch(texts: Conditioning, text_of: Int[Array, "b p"]) -> Conditioning:
    """The texts that the branches of an evaluation see, branches outside."""

    def chosen(values: Array | None) -> Array | None:
        if values is None:
            return None
        index = text_of.reshape(*text_of.shape, *(1,) * (values.ndim - 2))
        branches_first = jnp.moveaxis(jnp.take_along_axis(values, index, axis=1), 1, 0)
        return branches_first.reshape(-1, *values.shape[2:])

    context = chosen(texts.context)
    assert context is not None
    return Conditioning(context, chosen(texts.mask), chosen(texts.pooled))
