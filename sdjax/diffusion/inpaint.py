"""What stands in the masked part of the image latents before sampling: `inpainting_fill` of A1111."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The image's own latents, noise, zeros, or the mean of what the mask leaves.
FILLINGS = ("original", "noise", "blank", "average")


def filled(
    image_latents: Float[Array, "b h w c"],
    mask: Float[Array, "b h w 1"],
    filling: Int[Array, " b"],
    noise: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Image latents whose masked part is filled.

    Args:
      image_latents: of the images, without noise.
      mask: the share of each place that is repainted, 0 to 1.
      filling: for each image, the index in `FILLINGS`.
      noise: standard normal.
    """
    stays = 1 - mask
    mean = (image_latents * stays).sum(axis=(1, 2), keepdims=True)
    mean = mean / jnp.maximum(stays.sum(axis=(1, 2), keepdims=True), 1)
    kinds = (image_latents, noise, jnp.zeros_like(image_latents), jnp.broadcast_to(mean, image_latents.shape))
    chosen = jnp.select([(filling == kind)[:, None, None, None] for kind in range(len(FILLINGS))], kinds)
    # Not a sum where there is nothing to mix, so that an image stays itself to the bit.
    mixed = mask * chosen + stays * image_latents
    return jnp.where((filling == 0)[:, None, None, None], image_latents, mixed)
