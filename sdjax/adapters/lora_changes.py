"""What the members of the LoRA family add to a weight.

All arrays lie as our weights do: (in, out) of linear layers, (height, width, in, out) of convolutions. Each kind's own
scale (alpha over rank) is in one of its factors already.

LoRA: Hu et al. 2021, arXiv:2106.09685. DoRA: Liu et al. 2024, arXiv:2402.09353. LoCon, LoHa, LoKr, and all of them with
Tucker's middle: Yeh et al. 2023, arXiv:2309.14859, and the `lycoris` library, whose files these are.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Values = Float[Array, "..."] | Float[np.ndarray, "..."]


class Product(NamedTuple):
    """A weight as a product of small ones.

    down: (in, r) or (height, width, in, r).
    up: (s, out), where s is r if there is no middle.
    middle: (height, width, r, s) between a `down` of (in, r) and `up`, or None.
    """

    down: Values
    up: Values
    middle: Values | None = None


class LowRank(NamedTuple):
    """LoRA and LoCon. `magnitude` makes it DoRA: see `_of_magnitude`."""

    product: Product
    magnitude: Values | None = None


class Hadamard(NamedTuple):
    """LoHa: two products, multiplied element by element."""

    first: Product
    second: Product
    magnitude: Values | None = None


class Kronecker(NamedTuple):
    """LoKr: the Kronecker product of a matrix (in, out) and a weight, of which each may be a product itself."""

    first: Values | Product
    second: Values | Product
    magnitude: Values | None = None


class Difference(NamedTuple):
    """The whole difference, of a weight, a scale or a bias."""

    values: Values


Change = LowRank | Hadamard | Kronecker | Difference


def factors(product: Product) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(down, up) of a product, what is between them multiplied into `down`; each a linear layer or a convolution.

    `down` is (in, s) or (height, width, in, s), `up` (s, out).
    """
    down, up = jnp.asarray(product.down), jnp.asarray(product.up)
    if product.middle is None:
        return down, up
    height, width, rank, last = product.middle.shape
    wide = jnp.moveaxis(jnp.asarray(product.middle), 2, 0).reshape(rank, height * width * last)
    folded = _multiplied(down, wide).reshape(down.shape[0], height, width, last)
    return jnp.moveaxis(folded, 0, 2), up


def _multiplied(a: Float[Array, "n k"], b: Float[Array, "k m"]) -> Float[Array, "n m"]:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _whole(values: Values | Product) -> Float[Array, "..."]:
    """The weight that a product stands for."""
    if not isinstance(values, Product):
        return jnp.asarray(values)
    down, up = factors(values)
    return _multiplied(down.reshape(-1, down.shape[-1]), up).reshape(*down.shape[:-1], up.shape[-1])


def _kronecker(first: Float[Array, "b a"], second: Float[Array, "*window d c"]) -> Float[Array, "*window i o"]:
    """Of the last two axes: input b * d + d', output a * c + c'."""
    *window, d, c = second.shape
    b, a = first.shape
    product = first.reshape(*(1 for _ in window), b, 1, a, 1) * second.reshape(*window, 1, d, 1, c)
    return product.reshape(*window, b * d, a * c)


def _direction(change: LowRank | Hadamard | Kronecker) -> Float[Array, "..."]:
    """What is added, without DoRA."""
    if isinstance(change, LowRank):
        return _whole(change.product)
    if isinstance(change, Hadamard):
        return _whole(change.first) * _whole(change.second)
    return _kronecker(_whole(change.first), _whole(change.second))


def _of_magnitude(weight: Float[Array, "..."], magnitude: Values) -> Float[Array, "..."]:
    """A weight whose columns (or rows) get the lengths that DoRA has learnt.

    `magnitude` has the weight's axes; where it has but one element, the length is taken over that axis.
    """
    axes = tuple(axis for axis, length in enumerate(magnitude.shape) if length == 1)
    length = jnp.sqrt(jnp.sum(jnp.square(weight), axis=axes, keepdims=True))
    # A weight of zeros has no direction; the same is added by lycoris.
    return weight * (jnp.asarray(magnitude) / (length + jnp.finfo(jnp.float32).eps))


def addition(change: Change, weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """What a change adds, at weight 1, to a parameter (float32) as it is before."""
    if isinstance(change, Difference):
        return jnp.asarray(change.values)
    added = _direction(change)
    if change.magnitude is None:
        return added
    return _of_magnitude(weight + added, change.magnitude) - weight
