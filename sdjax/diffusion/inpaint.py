"""What stands in a masked place of a picture before anything is drawn there."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The picture itself, noise, nothing, or the mean of the rest.
FILLINGS = ("original", "noise", "blank", "average")


def filled(
    clean: Float[Array, "b h w c"],
    anew: Float[Array, "b h w 1"],
    filling: Int[Array, " b"],
    noise: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Clean latents with something else where they are drawn anew.

    Args:
      clean: of pictures.
      anew: the share of each place that is drawn anew, 0 to 1.
      filling: for each picture, which of `FILLINGS`.
      noise: standard normal.
    """
    stays = 1 - anew
    mean = (clean * stays).sum(axis=(1, 2), keepdims=True) / jnp.maximum(stays.sum(axis=(1, 2), keepdims=True), 1)
    kinds = (clean, noise, jnp.zeros_like(clean), jnp.broadcast_to(mean, clean.shape))
    chosen = jnp.select([(filling == kind)[:, None, None, None] for kind in range(len(FILLINGS))], kinds)
    # Not a sum where there is nothing to mix, so that a picture stays itself to the bit.
    return jnp.where((filling == 0)[:, None, None, None], clean, anew * chosen + stays * clean)
