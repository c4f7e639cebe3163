"""The loop: from the first latents to the last, for a batch whose images each have their own sampler and schedule.

One pair of functions, `init` and `step`, takes the steps of every sampler: what differs is in the table. So another
sampler, schedule or number of steps is other numbers for the same program.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sdjax.diffusion.array_group import array_group
from sdjax.diffusion.tableau import REGISTERS, Table

Latents = Float[Array, "b h w c"]
# Of numpy where the tables are made, of JAX where they are used; and in the same places how they are sharded.
ArrayLike = Any


class Level(NamedTuple):
    """The noise level and timestep at which the network is evaluated, for each image.

    sigma: standard deviation of the noise in the latents.
    alpha: 1 / sqrt(1 + sigma^2), by which latents have unit variance. It is worked out on the host: XLA turns roots and
      quotients over in one program and not in another.
    timestep: what the network is told.
    evaluation: the number of the evaluation, one for all images.
    """

    sigma: Float[Array, " b"]
    alpha: Float[Array, " b"]
    timestep: Float[Array, " b"]
    evaluation: Int[Array, ""]


# What the network keeps from one evaluation to the next: a tree of arrays, empty for most.
Memory = Any
# (latents, level, memory) -> the denoised latents and the memory after.
Denoise = Callable[[Latents, Level, Memory], tuple[Latents, Memory]]


class NoiseRequest(NamedTuple):
    """The noise that is added after an evaluation.

    place: where it comes in the order of draws, counted from 0; one for all images.
    draws: whether an image takes any.
    brownian: whether it is an increment of a Brownian path over `span`, else white.
    span: sigma before and after, for increments.
    """

    place: Int[Array, ""]
    draws: Bool[Array, " b"]
    brownian: Bool[Array, " b"]
    span: Float[Array, "b 2"]


@array_group
class EvaluationArrays:
    """One evaluation of the network and what follows it, for each image: a row of `tableau.Table` as arrays.

    In `TableArrays` every array has the evaluations as one more axis in front.
    """

    sigma: Float[ArrayLike, "*n b"]
    alpha: Float[ArrayLike, "*n b"]
    timestep: Float[ArrayLike, "*n b"]
    weights: Float[ArrayLike, "*n b registers terms"]
    draws: Bool[ArrayLike, "*n b"]
    brownian: Bool[ArrayLike, "*n b"]
    span: Float[ArrayLike, "*n b 2"]


@array_group
class TableArrays:
    """The tables of a batch.

    evaluations: arrays whose first axis is the number of the evaluation.
    counts: how many evaluations each image has.
    """

    evaluations: EvaluationArrays
    counts: Int[ArrayLike, " b"]


def stack_tables(tables: Sequence[Table], length: int) -> TableArrays:
    """The tables of several images, each of its own length, as one of `length` evaluations and a column per image.

    Evaluations beyond an image's own are copies of its last, and never used for it.
    """

    def stacked(columns: Sequence[np.ndarray]) -> np.ndarray:
        pads = [((0, length - len(column)), *((0, 0),) * (column.ndim - 1)) for column in columns]
        padded = [np.pad(column, pad, mode="edge") for column, pad in zip(columns, pads, strict=True)]
        result = np.stack(padded, axis=1)
        return result if result.dtype == bool else result.astype(np.float32)

    evaluations = EvaluationArrays(
        sigma=stacked([table.sigma for table in tables]),
        alpha=stacked([1 / np.sqrt(1 + np.square(table.sigma)) for table in tables]),
        timestep=stacked([table.timestep for table in tables]),
        weights=stacked([table.weights for table in tables]),
        draws=stacked([table.draws[1:] for table in tables]),
        brownian=stacked([table.brownian[1:] for table in tables]),
        span=stacked([table.span[1:] for table in tables]),
    )
    return TableArrays(evaluations, np.array([table.evaluations for table in tables], np.int32))


class State(NamedTuple):
    """What is carried from one evaluation to the next; the first register is the network's next input.

    memory: also of images that have finished, whose latents stay.
    """

    registers: tuple[Latents, ...]
    memory: Memory = ()

    @property
    def latents(self) -> Latents:
        """The network's next input, and after the last evaluation the result."""
        return self.registers[0]


class Info(NamedTuple):
    """What a step reports beside its state: the network's estimate of the denoised latents."""

    denoised: Latents


def init(latents: Latents, memory: Memory = ()) -> State:
    """The state before the first evaluation."""
    return State((latents, *(jnp.zeros_like(latents) for _ in range(REGISTERS - 1))), memory)


def step(
    denoise: Denoise, state: State, evaluation: EvaluationArrays, number: Int[Array, ""], noise: Latents
) -> tuple[State, Info]:
    """One evaluation of the network and what follows it.

    Args:
      denoise: the network with parametrisation and guidance.
      state: from `init` or the step before.
      evaluation: the rows of the tables.
      number: of the evaluation.
      noise: standard normal, for images that draw any after it.
    """
    level = Level(evaluation.sigma, evaluation.alpha, evaluation.timestep, number)
    denoised, memory = denoise(state.latents, level, state.memory)
    terms = (*state.registers, denoised, noise)
    weights = evaluation.weights[..., None, None, None]

    def register(index: int) -> Latents:
        # Written out, for sums of this kind are then the same in every place of the batch.
        total = weights[:, index, 0] * terms[0]
        for column in range(1, len(terms)):
            total = total + weights[:, index, column] * terms[column]
        return total

    return State(tuple(register(index) for index in range(REGISTERS)), memory), Info(denoised)


class Previews(NamedTuple):
    """Latents kept on the way, for previews: the network's inputs at unit variance, and the denoised latents."""

    noisy: Float[Array, "p b h w c"]
    denoised: Float[Array, "p b h w c"]


def sample(
    denoise: Denoise,
    latents: Latents,
    tables: TableArrays,
    draw: Callable[[NoiseRequest], Latents] | None,
    preview_places: Int[Array, "n b"] | None = None,
    preview_count: int = 0,
    put_back: Callable[[Latents, Float[Array, " b"]], Latents] | None = None,
    memory: Memory = (),
) -> tuple[Latents, Previews]:
    """Takes each image through its own table.

    Args:
      denoise: the network with parametrisation and guidance.
      latents: the first ones; see `Table.start` and `Table.first_noise`.
      tables: of the batch.
      draw: gives noise; None if no table draws any after an evaluation.
      preview_places: for each evaluation its place among an image's previews; -1 where it is not kept.
      preview_count: how many previews there is room for.
      put_back: what becomes of the latents, of these sigmas, between two evaluations; None leaves them.
      memory: what the network is given in the first evaluation.

    An image that has finished stays as it is while others go on, so its bits do not depend on them.
    """
    last = jnp.max(tables.counts)

    def drawn(place: Array, row: EvaluationArrays) -> Latents:
        if draw is None:
            return jnp.zeros_like(latents)
        return draw(NoiseRequest(place, row.draws, row.brownian, row.span))

    def body(carry: tuple[Array, State, Previews]) -> tuple[Array, State, Previews]:
        index, state, previews = carry
        row = jax.tree.map(lambda column: column[index], tables.evaluations)
        after, info = step(denoise, state, row, index, drawn(index + 1, row))
        if put_back is not None:
            # After an image's last evaluation there is no next one, and what this gives is not used.
            sigmas = tables.evaluations.sigma
            following = sigmas[jnp.minimum(index + 1, len(sigmas) - 1)]
            between = (index + 1 < tables.counts)[:, None, None, None]
            latents_after = jnp.where(between, put_back(after.latents, following), after.latents)
            after = after._replace(registers=(latents_after, *after.registers[1:]))
        going = (index < tables.counts)[:, None, None, None]
        if preview_places is not None:
            noisy = state.latents * row.alpha[:, None, None, None]
            places = jnp.arange(preview_count)[:, None]
            here = (places == preview_places[index][None])[:, :, None, None, None] & going[None]
            pairs = zip((noisy, info.denoised), previews, strict=True)
            previews = Previews(*(jnp.where(here, new[None], old) for new, old in pairs))
        kept = (jnp.where(going, new, old) for new, old in zip(after.registers, state.registers, strict=True))
        return index + 1, State(tuple(kept), after.memory), previews

    empty = jnp.zeros((preview_count, *latents.shape), latents.dtype)
    start = (jnp.zeros((), jnp.int32), init(latents, memory), Previews(empty, empty))
    _, state, previews = lax.while_loop(lambda carry: carry[0] < last, body, start)
    return state.latents, previews
