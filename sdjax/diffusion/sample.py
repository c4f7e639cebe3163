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
from jaxtyping import Array, Float, Int

from sdjax.diffusion.tableau import REGISTERS, Table

Latents = Float[Array, "b h w c"]


class Level(NamedTuple):
    """Where the network is asked: for each image noise, share of the clean picture at unit variance, and timestep.

    `alpha` is 1 / sqrt(1 + sigma^2), worked out on the host: XLA turns roots and quotients over in one program and not
    in another. `evaluation` is the number of the evaluation, one for all.
    """

    sigma: Float[Array, " b"]
    alpha: Float[Array, " b"]
    timestep: Float[Array, " b"]
    evaluation: Int[Array, ""]


Denoise = Callable[[Latents, Level], Latents]


class NoiseWanted(NamedTuple):
    """The noise after an evaluation: its place in the order of draws, and what each image wants.

    draws: whether any.
    brownian: whether as an increment of a Brownian path from one sigma to another, `span`.
    """

    place: Int[Array, ""]
    draws: Any  # (b,) bool
    brownian: Any  # (b,) bool
    span: Any  # (b, 2)


class Row(NamedTuple):
    """What one evaluation takes, for each image; of all evaluations, with one more axis in front, `Rows`."""

    sigma: Any  # (b,)
    alpha: Any  # (b,)
    timestep: Any  # (b,)
    weights: Any  # (b, registers, registers + 2)
    draws: Any  # (b,) bool
    brownian: Any  # (b,) bool
    span: Any  # (b, 2)


class Rows(NamedTuple):
    """The tables of a batch.

    rows: a `Row` whose arrays have the evaluations in front.
    count: (b,) evaluations of each image.
    """

    rows: Row
    count: Any


def stack_tables(tables: Sequence[Table], rows: int) -> Rows:
    """Tables of several images, each of its own length, as one of `rows` evaluations and a column per image.

    Rows beyond an image's own are copies of its last, and never used for it.
    """

    def stacked(columns: Sequence[np.ndarray]) -> np.ndarray:
        pads = [((0, rows - len(column)), *((0, 0),) * (column.ndim - 1)) for column in columns]
        padded = [np.pad(column, pad, mode="edge") for column, pad in zip(columns, pads, strict=True)]
        result = np.stack(padded, axis=1)
        return result if result.dtype == bool else result.astype(np.float32)

    row = Row(
        sigma=stacked([table.sigma for table in tables]),
        alpha=stacked([1 / np.sqrt(1 + np.square(table.sigma)) for table in tables]),
        timestep=stacked([table.timestep for table in tables]),
        weights=stacked([table.weights for table in tables]),
        draws=stacked([table.draws[1:] for table in tables]),
        brownian=stacked([table.brownian[1:] for table in tables]),
        span=stacked([table.span[1:] for table in tables]),
    )
    return Rows(row, np.array([table.evaluations for table in tables], np.int32))


class State(NamedTuple):
    """What is kept between two evaluations; the first register is what the network is asked next."""

    registers: tuple[Latents, ...]

    @property
    def latents(self) -> Latents:
        """At the end the result."""
        return self.registers[0]


class Info(NamedTuple):
    """What a step reports beside its state: the clean latents that the network expected."""

    denoised: Latents


def init(latents: Latents) -> State:
    """The state before the first evaluation."""
    return State((latents, *(jnp.zeros_like(latents) for _ in range(REGISTERS - 1))))


def step(denoise: Denoise, state: State, row: Row, evaluation: Array, noise: Latents) -> tuple[State, Info]:
    """One evaluation of the network and what follows it."""
    denoised = denoise(state.latents, Level(row.sigma, row.alpha, row.timestep, evaluation))
    terms = (*state.registers, denoised, noise)
    weights = row.weights[..., None, None, None]

    def register(index: int) -> Latents:
        # Written out, for sums of this kind are then the same in every place of the batch.
        total = weights[:, index, 0] * terms[0]
        for column in range(1, len(terms)):
            total = total + weights[:, index, column] * terms[column]
        return total

    return State(tuple(register(index) for index in range(REGISTERS))), Info(denoised)


class Trail(NamedTuple):
    """Latents kept on the way: what the network was asked, at unit variance, and the clean latents it expected."""

    noisy: Float[Array, "f b h w c"]
    clean: Float[Array, "f b h w c"]


def sample(
    denoise: Denoise,
    latents: Latents,
    tables: Rows,
    draw: Callable[[NoiseWanted], Latents] | None,
    frames: Int[Array, "n b"] | None = None,
    frame_count: int = 0,
    put_back: Callable[[Latents, Float[Array, " b"]], Latents] | None = None,
) -> tuple[Latents, Trail]:
    """Takes each image through its own table.

    Args:
      denoise: the network with parametrisation and guidance.
      latents: the first ones; see `Table.start` and `Table.first_noise`.
      tables: of the batch.
      draw: gives noise; None if no table draws any after an evaluation.
      frames: where in the trail the latents of an evaluation are kept; -1 is nowhere.
      frame_count: length of the trail.
      put_back: what becomes of the latents, of these sigmas, between two evaluations; None leaves them.

    An image that has finished stays as it is while others go on, so its bits do not depend on them.
    """
    last = jnp.max(tables.count)

    def drawn(place: Array, row: Row) -> Latents:
        return jnp.zeros_like(latents) if draw is None else draw(NoiseWanted(place, row.draws, row.brownian, row.span))

    def body(carry: tuple[Array, State, Trail]) -> tuple[Array, State, Trail]:
        index, state, trail = carry
        row = jax.tree.map(lambda column: column[index], tables.rows)
        after, info = step(denoise, state, row, index, drawn(index + 1, row))
        if put_back is not None:
            # After an image's last evaluation there is no next one, and what this gives is not used.
            following = tables.rows.sigma[jnp.minimum(index + 1, len(tables.rows.sigma) - 1)]
            between = (index + 1 < tables.count)[:, None, None, None]
            latents_after = jnp.where(between, put_back(after.latents, following), after.latents)
            after = State((latents_after, *after.registers[1:]))
        going = (index < tables.count)[:, None, None, None]
        if frames is not None:
            noisy = state.latents * row.alpha[:, None, None, None]
            here = (jnp.arange(frame_count)[:, None] == frames[index][None])[:, :, None, None, None] & going[None]
            kept = zip((noisy, info.denoised), trail, strict=True)
            trail = Trail(*(jnp.where(here, new[None], old) for new, old in kept))
        return index + 1, jax.tree.map(lambda new, old: jnp.where(going, new, old), after, state), trail

    trail = jnp.zeros((frame_count, *latents.shape), latents.dtype)
    start = (jnp.zeros((), jnp.int32), init(latents), Trail(trail, trail))
    _, state, kept = lax.while_loop(lambda carry: carry[0] < last, body, start)
    return state.latents, kept
