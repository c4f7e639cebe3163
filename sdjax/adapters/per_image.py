"""Low-rank changes of weights, each image its own, as an extra input of the program.

`y = layer(x) + (x down) up` with a `down` and an `up` for each image of a batch: what LoRA does to a weight, done
beside it. So images with different LoRAs share a batch, and nothing is merged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from sdjax.adapters.lora_changes import Change, LowRank, Values, factors
from sdjax.checkpoints.name_table import Path
from sdjax.checkpoints.tensors import Params
from sdjax.families.family import UNET

# The least compiled rank; others are this times a power of 2.
_LEAST_RANK = 4

Group = Literal["attention", "feed_forward", "others", "text"]
_GROUPS: Mapping[str, Group] = {
    **dict.fromkeys(("to_q", "to_k", "to_v", "to_out_0"), "attention"),
    **dict.fromkeys(("proj", "net_2", "proj_in", "proj_out"), "feed_forward"),
}


def _group(path: Path) -> Group:
    return _GROUPS.get(path[-2], "others") if path[0] == UNET else "text"


class Shape(NamedTuple):
    """The static part of low-rank changes, which is compiled: the rank in each group of layers, 0 if none changes.

    attention: of the UNet: to_q, to_k, to_v, to_out.
    feed_forward: the other linear layers of its transformers.
    others: its convolutions, and what takes in the time.
    text: all linear layers of what reads text.
    """

    attention: int
    feed_forward: int
    others: int
    text: int


class Factors(NamedTuple):
    """A low-rank change of one layer.

    down: (in, r) or (height, width, in, r).
    up: (r, out).
    """

    down: Float[np.ndarray, "..."]
    up: Float[np.ndarray, "r o"]


class Weighted(NamedTuple):
    """An adapter of an image, by path of the kernel, and how strongly it acts in the UNet and in what reads text."""

    changes: Mapping[Path, Factors]
    weight: float
    text_weight: float


class Layer(NamedTuple):
    """The changes of one layer, one for each image.

    down: (images, in, r) or (images, height, width, in, r).
    up: (images, r, out).
    """

    down: Any
    up: Any


def low_rank(changes: Mapping[Path, Change]) -> dict[Path, Factors] | None:
    """An adapter as factors, if it has but such of plain low rank; None for the other kinds."""
    result = {}
    for path, change in changes.items():
        if not isinstance(change, LowRank) or change.magnitude is not None or path[-1] != "kernel":
            return None
        down, up = (np.asarray(array, np.float32) for array in factors(change.product))
        result[path] = Factors(down, up)
    return result


def _acting(image: Sequence[Weighted]) -> dict[Path, list[tuple[float, Factors]]]:
    """The changes of an image by layer; those without weight are left out."""
    acting: dict[Path, list[tuple[float, Factors]]] = {}
    for adapter in image:
        for path, change in adapter.changes.items():
            if weight := adapter.weight if path[0] == UNET else adapter.text_weight:
                acting.setdefault(path, []).append((weight, change))
    return acting


def shape_of(image: Sequence[Weighted]) -> Shape:
    """The shape which an image asks for, whatever its neighbours."""
    ranks = dict.fromkeys(Shape._fields, 0)
    for path, changes in _acting(image).items():
        rank = sum(change.up.shape[0] for _, change in changes)
        ranks[_group(path)] = max(ranks[_group(path)], rank)
    return Shape(**{group: _rounded(rank) for group, rank in ranks.items()})


def _rounded(rank: int) -> int:
    return rank and _LEAST_RANK * 2 ** max(0, math.ceil(math.log2(rank / _LEAST_RANK)))


def arrays(
    images: Sequence[Sequence[Weighted]], shape: Shape, params: Params, dtype: DTypeLike
) -> dict[str, dict[Path, Layer]]:
    """The changes of a batch, filled up with zeros to its shape.

    Args:
      images: the adapters of each, all of this shape.
      shape: from `shape_of`.
      params: of the networks that are changed, by name; or anything with their shapes.
      dtype: in which the layers calculate.

    Returns:
      The changes by network, and by path within each.
    """
    acting = [_acting(image) for image in images]
    return {
        part: {
            path[:-1]: _layer([each.get((part, *path), []) for each in acting], rank, kernel.shape, dtype)
            for path, kernel in flatten_dict(tree).items()
            if path[-1] == "kernel" and (rank := getattr(shape, _group((part, *path))))
        }
        for part, tree in params.items()
    }


def _layer(
    images: Sequence[Sequence[tuple[float, Factors]]], rank: int, kernel: tuple[int, ...], dtype: DTypeLike
) -> Layer:
    """One layer's changes, those of an image one after the other along the rank."""
    down = np.zeros((len(images), *kernel[:-1], rank), jnp.dtype(dtype))
    up = np.zeros((len(images), rank, kernel[-1]), jnp.dtype(dtype))
    for image, changes in enumerate(images):
        start = 0
        for weight, change in changes:
            end = start + change.up.shape[0]
            down[image, ..., start:end] = change.down.reshape(*kernel[:-1], -1)
            up[image, start:end] = np.float32(weight) * change.up
            start = end
    return Layer(down, up)


def adding(changes: Mapping[Path, Layer], images_first: bool) -> AbstractContextManager[None]:
    """A context in which a network's layers are changed for each image.

    Args:
      changes: by path within the network.
      images_first: how a batch is ordered that is a multiple of the images: whether the rows of an image are side by
        side (as the text encoder has them), or as far apart as there are images (the UNet).
    """

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__" or module.path not in changes:
            return y
        [x], layer = args, changes[module.path]
        times = len(x) // len(layer.down)
        down, up = (_spread(array, times, images_first) for array in layer)
        added = _linear(down, up, x) if isinstance(module, nn.Dense) else _convolved(module, down, up, x, y.shape)
        return (y.astype(jnp.float32) + added).astype(y.dtype)

    return nn.intercept_methods(intercept)


def _spread(values: Values, times: int, images_first: bool) -> Float[Array, "q ..."]:
    """What is given for each image, for each row of a batch."""
    if images_first:
        return jnp.repeat(values, times, axis=0)
    return jnp.tile(values, (times, *(1 for _ in values.shape[1:])))


def _product(x: Float[Array, "q n k"], y: Float[Array, "q k m"]) -> Float[Array, "q n m"]:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _linear(
    down: Float[Array, "q i r"], up: Float[Array, "q r o"], x: Float[Array, "q *n i"]
) -> Float[Array, "q *n o"]:
    """Of one row for each image, or of several (tokens)."""
    inner = _product(x.reshape(len(x), -1, x.shape[-1]), down).astype(x.dtype)
    return _product(inner, up).reshape(*x.shape[:-1], up.shape[-1])


def _convolved(
    module: nn.Conv,
    down: Float[Array, "q m n i r"],
    up: Float[Array, "q r o"],
    x: Float[Array, "q h w i"],
    shape: tuple[int, ...],
) -> Float[Array, "q y x o"]:
    """A convolution with `down`, then the product with `up`.

    XLA's convolutions with a kernel for each image are slow, so each pixel is multiplied with all places of the window
    at once, and what belongs to one pixel of the result is then added up: there are but r channels to move.
    """
    window, rank = down.shape[1:3], down.shape[-1]
    strides = (module.strides,) * 2 if isinstance(module.strides, int) else module.strides or (1, 1)
    padding = module.padding
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    places = jnp.moveaxis(down, 3, 1).reshape(len(x), x.shape[-1], -1)
    products = _product(x.reshape(len(x), -1, x.shape[-1]), places).reshape(*x.shape[:3], *window, rank)
    products = jnp.pad(products, ((0, 0), *padding, (0, 0), (0, 0), (0, 0)))
    rows, columns = (strides[axis] * (shape[1 + axis] - 1) + 1 for axis in range(2))
    moved = [
        products[:, row : row + rows : strides[0], column : column + columns : strides[1], row, column]
        for row in range(window[0])
        for column in range(window[1])
    ]
    inner = sum(moved[1:], moved[0]).astype(x.dtype)
    return _product(inner.reshape(len(x), -1, rank), up).reshape(*shape)
