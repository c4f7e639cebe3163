"""The loop: from the first latents to the last, for a batch whose images each have their own schedule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from sdjax.diffusion.samplers import Denoise, Latents, Sampler

Table = Any  # a sampler's coefficients, each (steps, batch)


def stack_tables(tables: list[Any], rows: int) -> Table:
    """Tables of several images, each of its own length, as one of `rows` rows and a column per image.

    Rows beyond an image's own are copies of its last, and never used for it.
    """

    def stack(*columns: np.ndarray) -> np.ndarray:
        padded = [np.pad(column, (0, rows - len(column)), mode="edge") for column in columns]
        return np.stack(padded, axis=1).astype(np.float32)

    return jax.tree.map(stack, *tables)


def sample(
    sampler: Sampler,
    denoise: Denoise,
    latents: Latents,
    table: Table,
    steps: Int[Array, " b"],
    draw_noise: Callable[[Array], Float[Array, "b h w c"]] | None,
) -> Latents:
    """Takes each image through its own number of steps.

    Args:
      sampler: from `SAMPLERS`.
      denoise: the network with parametrisation and guidance.
      latents: standard deviation as `Steps.start` says.
      table: coefficients, a row per step and a column per image.
      steps: how many rows of the table each image uses.
      draw_noise: gives the noise of a step; only for samplers that draw any.

    An image that has finished stays as it is while others go on, so its bits do not depend on them.
    """
    last = jnp.max(steps)

    def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        index, state = carry
        row = jax.tree.map(lambda column: column[index][:, None, None, None], table)
        noise = draw_noise(index) if draw_noise else None
        after, _ = sampler.step(denoise, state, row, noise)
        going = (index < steps)[:, None, None, None]
        return index + 1, jax.tree.map(lambda new, old: jnp.where(going, new, old), after, state)

    start = (jnp.zeros((), jnp.int32), sampler.init(latents))
    _, state = lax.while_loop(lambda carry: carry[0] < last, body, start)
    return state.latents
