"""Accelerations that change images: what of them is compiled, in which evaluations they act, what they keep.

DeepCache and T-GATE keep features of the UNet from one evaluation to the next, token merging keeps nothing.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdjax.diffusion.noise import merging_choices
from sdjax.diffusion.sample import Level
from sdjax.engine.inputs import Inputs
from sdjax.models.deep_cache import deep_cache
from sdjax.models.t_gate import Outputs, cross_attention
from sdjax.models.token_merging import PLACES, token_merging


class Accelerations(NamedTuple):
    """What of a job's accelerations is part of a compiled program; the defaults are none.

    deep_cache_branch: the skip connection of DeepCache; None is without.
    merged_size: rows and columns of the feature maps where tokens are merged; None is nowhere.
    merging_ratio: how many of them are.
    gated: whether T-GATE ends guidance and cross-attention.
    """

    deep_cache_branch: int | None = None
    merged_size: tuple[int, int] | None = None
    merging_ratio: float = 0.0
    gated: bool = False

    @property
    def cached(self) -> bool:
        """Whether something is kept from one evaluation to the next."""
        return self.deep_cache_branch is not None or self.gated


class Cache(NamedTuple):
    """What is kept from one evaluation to the next.

    deep: features of the UNet of all branches, branches outside; None without DeepCache.
    cross_attention: averaged over branches; empty without T-GATE.
    """

    deep: Float[Array, "q h w c"] | None
    cross_attention: Outputs


def deep_evaluations(
    count: int, interval: int, guided: tuple[int, int] | None, gate: int | None
) -> Bool[np.ndarray, " e"]:
    """In which evaluations deep features are computed, and not those of an earlier one reused.

    Every `interval`-th, as DeepCache's uniform schedule has it. Where the negative prompt begins to be asked, it has no
    features yet. As T-GATE has it, they are also computed in the last evaluation before the gate and in the first
    behind it, from where they are counted again.

    Args:
      count: of evaluations.
      interval: from 1 (all) on.
      guided: the first evaluation that is guided, and the one after the last; None if all or none are.
      gate: the first evaluation behind the gate; None without.
    """
    numbers = np.arange(count)
    from_gate = numbers if gate is None else np.where(numbers < gate, numbers, numbers - gate)
    computed = from_gate % interval == 0
    if gate:
        computed[gate - 1] = True
    if guided is not None:
        computed[guided[0]] = True
    return computed


def empty_cache(shapes: Cache) -> Cache:
    """A cache of these shapes; it is not read before it is filled."""
    cache: Cache = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return cache


@contextmanager
def accelerated(
    accelerations: Accelerations, inputs: Inputs, level: Level, deep: Array | None, gated: Outputs | None
) -> Iterator[tuple[list[Array], Outputs]]:
    """A context in which a UNet is evaluated; gives what DeepCache and T-GATE keep of it, once it was.

    Args:
      accelerations: that act.
      inputs: of the batch.
      level: of the evaluation.
      deep: deep features that are reused; None computes them.
      gated: outputs of cross-attention that are reused; None computes them.
    """
    features: list[Array] = []
    outputs: Outputs = {}
    with ExitStack() as acting:
        if accelerations.deep_cache_branch is not None:
            features = acting.enter_context(deep_cache(accelerations.deep_cache_branch, deep))
        if accelerations.gated:
            outputs = acting.enter_context(cross_attention(gated))
        if accelerations.merged_size is not None:
            acting.enter_context(_merging(accelerations, accelerations.merged_size, inputs, level))
        yield features, outputs


def _merging(accelerations: Accelerations, size: tuple[int, int], inputs: Inputs, level: Level) -> Any:
    def choose(layer: int, windows: tuple[int, int]) -> Array:
        return merging_choices(inputs.per_image.seed_words, level.evaluation, layer, windows, PLACES)

    return token_merging(accelerations.merging_ratio, size, choose)


def updated(cache: Cache | None, features: list[Array], outputs: Outputs, shares: Float[Array, "p b"]) -> Cache:
    """The cache after an evaluation.

    Args:
      cache: before; None before the first.
      features: deep features of the first branches, if they were computed.
      outputs: of cross-attention, where it was computed for those branches.
      shares: of these branches in the average.
    """
    deep = cache.deep if cache else None
    for found in features:
        deep = found if deep is None else deep.at[: len(found)].set(found)
    kept = cache.cross_attention if cache else {}
    return Cache(deep, {**kept, **{path: _averaged(output, shares) for path, output in outputs.items()}})


def branch_shares(weights: Float[Array, "p b"], branches: int) -> Float[Array, "n b"]:
    """What of the average over branches each has: the parts of a prompt by weight; the negative prompt half of it."""
    shares = weights / weights.sum(axis=0, keepdims=True)
    if branches == len(weights):
        return shares
    return jnp.concatenate([shares / 2, jnp.full((1, weights.shape[1]), 0.5, weights.dtype)])


def _averaged(output: Float[Array, "q n c"], shares: Float[Array, "p b"]) -> Float[Array, "b n c"]:
    """The average over branches, in float32."""
    parts = jnp.split(output.astype(jnp.float32), len(shares))
    weighted = [share[:, None, None] * part for share, part in zip(shares, parts, strict=True)]
    return sum(weighted[1:], weighted[0]).astype(output.dtype)
