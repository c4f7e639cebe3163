"""Prompts to arrays: what of a `TokenizedPrompt` the program of a batch is given, and what it makes of it."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdjax.diffusion.tableau import Table
from sdjax.models import TextEncoder
from sdjax.text.prompt_tokenizer import FIRST_VECTOR
from sdjax.text.tokenized_prompt import TokenizedPrompt

# Numbers of readings, texts and chunks are rounded up to these, so that few programs serve many prompts.
_SIZES = tuple(itertools.chain.from_iterable((2**n, 3 * 2 ** (n - 1)) for n in range(1, 20)))


class Shape(NamedTuple):
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


class Used(NamedTuple):
    """The part of a conditioning that an image uses.

    branches: columns of its schedule.
    readings, texts: indices of those that are used.
    embeddings: names of those that are read.
    """

    conditioning: TokenizedPrompt
    branches: tuple[int, ...]
    readings: tuple[int, ...]
    texts: tuple[int, ...]
    embeddings: tuple[str, ...]
    shape: Shape


def used(conditioning: TokenizedPrompt, branches: tuple[int, ...], guided: bool) -> Used:
    """Leaves out what an image does not need.

    Args:
      conditioning: of its prompts.
      branches: the columns of the schedule that count.
      guided: whether the last of them is the negative prompt.
    """
    rows = dict.fromkeys(conditioning.schedule)
    texts = tuple(dict.fromkeys(row[branch] for row in rows for branch in branches))
    needed = dict.fromkeys(index for text in texts for index, _ in conditioning.texts[text].mix)
    if conditioning.empty is not None:
        needed[conditioning.empty] = None
    readings = tuple(needed)
    ids = {index for reading in readings for chunk in conditioning.readings[reading].ids for index in chunk}
    learned = {
        name: rows for name, rows in _rows(conditioning).items() if any(FIRST_VECTOR + row in ids for row in rows)
    }
    vectors = max((rows.stop for rows in learned.values()), default=0)
    shape = Shape(
        readings=_rounded(max(len(readings), len(branches))),
        texts=_rounded(max(len(texts), len(branches))),
        chunks=_rounded(max(len(conditioning.readings[index].ids) for index in readings)),
        branches=len(branches),
        guided=guided,
        masked=any(conditioning.readings[index].mask is not None for index in readings),
        vectors=_rounded(vectors) if vectors else 0,
    )
    return Used(conditioning, branches, readings, texts, tuple(learned), shape)


def _rounded(count: int) -> int:
    return count if count == 1 else next(size for size in _SIZES if size >= count)


class Prompts(NamedTuple):
    """The prompts of a batch, as arrays.

    ids, weights, mask: (images, readings, chunks, tokens); of padded chunks a copy of the last one. No mask: ().
    mix: (images, texts, readings).
    chunks: (images, texts) of each text.
    around: (images, readings): 1 at the reading of the empty prompt, where weights act around it.
    normalise: (images,) whether weighted chunks are scaled back to their mean.
    clip_skip: (images,).
    part_weights: (parts, images).
    text_of: (evaluations, images, branches) the text that each sees.
    vectors: (images, rows, width) of embeddings. No embeddings: ().
    """

    ids: Any
    weights: Any
    mask: Any
    mix: Any
    chunks: Any
    around: Any
    normalise: Any
    clip_skip: Any
    part_weights: Any
    text_of: Any
    vectors: Any


def arrays(
    images: Sequence[Used],
    tables: Sequence[Table],
    clip_skips: Sequence[int],
    rows: int,
    vectors: Sequence[Sequence[Float[np.ndarray, "_ e"]]] = (),
) -> Prompts:
    """The arrays of images of one shape.

    Args:
      images: what of their prompts is used.
      tables: of their samplers.
      clip_skips: how many of the text encoder's last layers each leaves out.
      rows: evaluations; filled up with copies of the last.
      vectors: of each image those of each of its `embeddings`, in their order. Not needed where the shape has none.
    """
    shape = images[0].shape
    length = len(images[0].conditioning.readings[0].ids[0])
    size = (len(images), shape.readings, shape.chunks, length)
    ids, weights, mask = np.zeros(size, np.int32), np.ones(size, np.float32), np.ones(size, bool)
    mix = np.zeros((len(images), shape.texts, shape.readings), np.float32)
    chunks = np.ones((len(images), shape.texts), np.int32)
    around = np.zeros((len(images), shape.readings), np.float32)
    text_of = np.zeros((rows, len(images), shape.branches), np.int32)
    for number, (image, table) in enumerate(zip(images, tables, strict=True)):
        whole = image.conditioning
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
            around[number, image.readings.index(whole.empty)] = 1
        steps = np.minimum(table.step, len(whole.schedule) - 1)
        places = {text: place for place, text in enumerate(image.texts)}
        by_step = [[places[whole.schedule[step][branch]] for branch in image.branches] for step in steps]
        text_of[:, number] = [*by_step, *by_step[-1:] * (rows - len(by_step))]
    parts = shape.branches - shape.guided
    part_weights = [[_part_weight(image, branch) for image in images] for branch in range(parts)]
    return Prompts(
        ids=ids,
        weights=weights,
        mask=mask if shape.masked else (),
        mix=mix,
        chunks=chunks,
        around=around,
        normalise=np.array([image.conditioning.normalise for image in images]),
        clip_skip=np.array(clip_skips, np.int32),
        part_weights=np.array(part_weights, np.float32).reshape(parts, len(images)),
        text_of=text_of,
        vectors=np.stack(list(map(_placed, images, vectors))) if shape.vectors else (),
    )


def _part_weight(image: Used, branch: int) -> float:
    weights = image.conditioning.part_weights
    return weights[branch] if branch < len(weights) else 1.0


def _placed(image: Used, vectors: Sequence[Float[np.ndarray, "_ e"]]) -> Float[np.ndarray, "r e"]:
    """The vectors of an image, each in the row that its id says; other rows are never read."""
    placed = np.zeros((image.shape.vectors, vectors[0].shape[1]), np.float32)
    rows = _rows(image.conditioning)
    for name, each in zip(image.embeddings, vectors, strict=True):
        placed[rows[name].start : rows[name].stop] = each
    return placed


def _rows(conditioning: TokenizedPrompt) -> dict[str, range]:
    """In which rows the vectors of each embedding are."""
    starts = itertools.accumulate(conditioning.vectors, initial=0)
    named = zip(conditioning.embeddings, starts, conditioning.vectors, strict=False)
    return {name: range(start, start + count) for name, start, count in named}


class Contexts(NamedTuple):
    """What cross-attention looks at, of each text; the mask is None where all of it may be seen."""

    states: Float[Array, "b t n e"]
    mask: Bool[Array, "b t n"] | None


def encode(text_encoder: TextEncoder, params: Any, prompts: Prompts) -> Contexts:
    """Readings through the text encoder, weighted, and mixed to texts."""
    batch, readings, chunks, length = prompts.ids.shape
    flat = (batch * readings * chunks, length)
    mask = prompts.mask.reshape(flat) if isinstance(prompts.mask, jax.Array) else None
    skip = jnp.repeat(prompts.clip_skip, readings * chunks)
    ids, vectors = prompts.ids.reshape(flat), None
    if isinstance(prompts.vectors, jax.Array):
        vectors = jnp.repeat(prompts.vectors, readings * chunks, axis=0)
        ids = jnp.where(ids < FIRST_VECTOR, ids, ids - FIRST_VECTOR + text_encoder.config.vocab_size)
    hidden = text_encoder.apply({"params": params}, ids, mask, skip, vectors).last_hidden_state
    states = hidden.reshape(batch, readings, chunks, length, -1)
    weighted = _weighted(states.astype(jnp.float32), prompts)
    texts = _mixed(weighted, prompts.mix)
    states = texts.astype(hidden.dtype).reshape(batch, prompts.mix.shape[1], chunks * length, -1)
    if chunks == 1:
        return Contexts(states, None)
    there = jnp.arange(chunks)[None, None] < prompts.chunks[..., None]
    return Contexts(states, jnp.repeat(there, length, axis=-1))


def _weighted(states: Float[Array, "b k c n e"], prompts: Prompts) -> Float[Array, "b k c n e"]:
    """Each token's state, its distance from 0 or from the empty prompt's scaled; 1 changes nothing, to the bit."""
    weights = prompts.weights[..., None]
    empty = jnp.sum(states * prompts.around[:, :, None, None, None], axis=1, keepdims=True)
    scaled = empty + (states - empty) * weights
    means = scaled.mean(axis=(-2, -1), keepdims=True)
    restored = scaled * (states.mean(axis=(-2, -1), keepdims=True) / jnp.where(means == 0, 1.0, means))
    scaled = jnp.where(prompts.normalise[:, None, None, None, None], restored, scaled)
    plain = (weights == 1).all(axis=(-2, -1), keepdims=True)
    return jnp.where(plain, states, scaled)


def _mixed(states: Float[Array, "b k c n e"], mix: Float[Array, "b t k"]) -> Float[Array, "b t c n e"]:
    """Sums of readings; a reading of coefficient 0 counts for nothing, whatever it holds."""
    total = jnp.zeros((states.shape[0], mix.shape[1], *states.shape[2:]), states.dtype)
    for index in range(states.shape[1]):
        share = mix[:, :, index][..., None, None, None]
        total = total + jnp.where(share == 0, 0.0, share * states[:, index][:, None])
    return total


def seen_by(contexts: Contexts, text_of: Int[Array, "b p"]) -> tuple[Float[Array, "q n e"], Bool[Array, "q n"] | None]:
    """The context of each branch and image, branches outside: q = branches * images."""

    def chosen(values: Array) -> Array:
        index = text_of.reshape(*text_of.shape, *(1,) * (values.ndim - 2))
        by_branch = jnp.moveaxis(jnp.take_along_axis(values, index, axis=1), 1, 0)
        return by_branch.reshape(-1, *values.shape[2:])

    return chosen(contexts.states), None if contexts.mask is None else chosen(contexts.mask)
