"""Resizes latents as torch's `interpolate` does: each axis is multiplied by a matrix."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64


def _triangle(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(sharpness: float) -> Callable[[Float64[np.ndarray, "..."]], Float64[np.ndarray, "..."]]:
    """Keys 1981, equation 15, with its free parameter."""

    def kernel(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
        a, x = sharpness, np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return kernel


class Method(NamedTuple):
    """A way of interpolating.

    kernel: weight of a sample by its distance; None takes the nearest.
    reach: beyond which it is nothing.
    antialias: widens the kernel where there will be fewer samples, and leaves out what is beyond the border; else the
      outermost sample is repeated there.
    centred: of the nearest: whether centres of samples are compared, not their beginnings.
    """

    kernel: Callable[[Float64[np.ndarray, "..."]], Float64[np.ndarray, "..."]] | None
    reach: int = 0
    antialias: bool = False
    centred: bool = True


# Under the names of A1111's latent upscalers. torch sharpens by 0.75, and by 0.5 with antialiasing.
LATENT_UPSCALERS: Mapping[str, Method] = {
    "latent": Method(_triangle, 1),
    "latent_antialiased": Method(_triangle, 1, antialias=True),
    "latent_bicubic": Method(_cubic(-0.75), 2),
    "latent_bicubic_antialiased": Method(_cubic(-0.5), 2, antialias=True),
    "latent_nearest": Method(None, centred=False),
    "latent_nearest_exact": Method(None),
}


@functools.cache
def matrix(method: Method, size: int, result: int) -> Float32[np.ndarray, "r s"]:
    """The weight of each of `size` samples in each of `result`; not to be written to."""
    scale = size / result
    if method.kernel is None:
        nearest = np.floor((np.arange(result) + (0.5 if method.centred else 0.0)) * scale).astype(int)
        return np.eye(size, dtype=np.float32)[np.minimum(nearest, size - 1)]
    centres = (np.arange(result) + 0.5) * scale - 0.5
    if method.antialias:
        wide = max(scale, 1.0)
        weights = method.kernel((np.arange(size)[None] - centres[:, None]) / wide)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
    weights = np.zeros((result, size))
    for step in range(1 - method.reach, method.reach + 1):
        sample = np.floor(centres).astype(int) + step
        np.add.at(weights, (np.arange(result), np.clip(sample, 0, size - 1)), method.kernel(sample - centres))
    return weights.astype(np.float32)


def resize_latents(latents: Float[Array, "b h w c"], method: str, height: int, width: int) -> Float[Array, "b i j c"]:
    """Resizes latents to a height and a width, each image by itself; `method` is a key of `LATENT_UPSCALERS`."""
    rows = matrix(LATENT_UPSCALERS[method], latents.shape[1], height)
    columns = matrix(LATENT_UPSCALERS[method], latents.shape[2], width)

    def one(image: Float[Array, "h w c"]) -> Float[Array, "i j c"]:
        return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image, precision="highest")

    return jax.lax.map(one, latents)
