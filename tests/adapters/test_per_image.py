"""Low-rank changes of each image of a batch against weights that have them merged in."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sdjax.adapters.lora_changes import Difference, LowRank, Product
from sdjax.adapters.per_image import Factors, Layer, Shape, Weighted, adding, arrays, low_rank, shape_of
from sdjax.engine.device import compiler_options
from sdjax.models import TextEncoder, UNet
from sdjax.models.convolution import Conv
from tests import toys

SMALL = dataclasses.replace(
    toys.SD1.unet,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 32),
)
PARAMS = {
    "unet": toys.random_params(toys.param_shapes(SMALL), np.random.RandomState(3)),
    "text_encoder": toys.random_params(toys.param_shapes(toys.SD1.text_encoder), np.random.RandomState(4)),
}
KERNELS = {
    tuple(step.key for step in path): leaf
    for path, leaf in jax.tree.leaves_with_path(PARAMS)
    if path[-1].key == "kernel"
}


def adapter(seed: int, rank: int, unet: float = 1.0, text_encoder: float = 1.0, part: str = "") -> Weighted:
    """One that changes all layers, or those whose path has a part."""
    rng = np.random.RandomState(seed)

    def factors(kernel: np.ndarray) -> Factors:
        down = rng.standard_normal((*kernel.shape[:-1], rank)) / np.sqrt(np.prod(kernel.shape[:-1]))
        up = rng.standard_normal((rank, kernel.shape[-1])) / np.sqrt(rank)
        return Factors(down.astype(np.float32), up.astype(np.float32))

    changes = {path: factors(kernel) for path, kernel in KERNELS.items() if part in "/".join(path)}
    return Weighted(changes, unet, text_encoder)


def merged(image: list[Weighted]) -> dict[str, Any]:
    """The weights with an image's adapters in them."""

    def leaf(steps: Any, values: np.ndarray) -> np.ndarray:
        path = tuple(step.key for step in steps)
        for each in image:
            if path in each.changes:
                down, up = each.changes[path]
                values = values + (each.weight if path[0] == "unet" else each.text_weight) * (down @ up)
        return values.astype(np.float32)

    return jax.tree.map_with_path(leaf, PARAMS)


IMAGES = [
    [adapter(1, 3)],
    [adapter(2, 2, unet=0.5, text_encoder=-1.0), adapter(3, 1, unet=-0.75, text_encoder=0.0)],
    [adapter(4, 1, part="to_"), adapter(5, 3, unet=2.0)],
]


@pytest.fixture(scope="module")
def unet() -> Any:
    """(adapters of each image, their inputs for two branches) -> outputs; compiled once."""
    programs: dict[str, Any] = {}

    def apply(images: list[list[Weighted]], given: list[np.ndarray]) -> np.ndarray:
        shape = shape_of(images[0])
        changes = arrays(images, shape, PARAMS, np.float32)["unet"]
        if "program" not in programs:

            def program(params: Any, changes: Any, given: Any) -> jax.Array:
                with adding(changes, images_first=False), jax.default_matmul_precision("highest"):
                    return UNet(SMALL).apply({"params": params}, *given)

            lowered = jax.jit(program).lower(PARAMS["unet"], changes, given)
            programs["program"] = lowered.compile(compiler_options("cpu"))
        return np.asarray(programs["program"](PARAMS["unet"], changes, given))

    return apply


def inputs(images: int) -> list[np.ndarray]:
    """Of the UNet, for two branches of each image."""
    rng = np.random.RandomState(0)
    shapes = (2 * images, 8, 8, 4), (2 * images,), (2 * images, 7, 32)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_each_image_has_the_weights_of_its_own_adapters_in_the_unet(unet: Any) -> None:
    given = inputs(3)
    result = unet(IMAGES, given)

    # Compiled with little care, which takes less time.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def plain(params: Any, given: Any) -> jax.Array:
        return UNet(SMALL).apply({"params": params}, *given)

    for number, image in enumerate(IMAGES):
        wanted = plain(merged(image)["unet"], [array[number::3] for array in given])
        np.testing.assert_allclose(result[number::3], wanted, rtol=1e-3, atol=1e-3)


def test_bits_depend_neither_on_neighbours_nor_on_the_place_in_a_batch(unet: Any) -> None:
    given = inputs(3)
    result = unet(IMAGES, given)
    order = [2, 0, 1]
    moved = unet([IMAGES[number] for number in order], [array[[*order, *(3 + np.array(order))]] for array in given])
    np.testing.assert_array_equal(moved, result[[*order, *(3 + np.array(order))]])
    alone = unet([IMAGES[1]] * 3, [array[[1, 1, 1, 4, 4, 4]] for array in given])
    np.testing.assert_array_equal(alone, result[[1, 1, 1, 4, 4, 4]])


def test_each_image_has_the_weights_of_its_own_adapters_in_the_text_encoder() -> None:
    ids = np.random.RandomState(0).randint(0, 10, (6, 5)).astype(np.int32)
    changes = arrays(IMAGES, shape_of(IMAGES[0]), PARAMS, np.float32)["text_encoder"]
    encoder = TextEncoder(toys.SD1.text_encoder)

    @jax.jit
    def program(params: Any, changes: Any, ids: Any) -> jax.Array:
        with adding(changes, images_first=True):
            return encoder.apply({"params": params}, ids).last_hidden_state

    result = program(PARAMS["text_encoder"], changes, ids)
    plain = jax.jit(lambda params, ids: encoder.apply({"params": params}, ids).last_hidden_state)
    for number, image in enumerate(IMAGES):
        rows = slice(2 * number, 2 * number + 2)
        wanted = plain(merged(image)["text_encoder"], ids[rows])
        np.testing.assert_allclose(result[rows], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((3, 3), 1, "SAME"),
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
        ((3, 1), (1, 3), ((0, 1), (2, 0))),
        ((1, 1), 2, "VALID"),
        ((2, 3), None, "VALID"),
    ],
)
def test_convolutions_of_any_form(window: tuple[int, int], strides: Any, padding: Any) -> None:
    rng = np.random.RandomState(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    x, layer = jnp.asarray(draw(2, 5, 6, 3)), Layer(draw(2, *window, 3, 4), draw(2, 4, 7))
    params = {"kernel": draw(*window, 3, 7), "bias": draw(7)}
    module = Conv(7, window, strides=strides, padding=padding)
    with adding({(): layer}, images_first=False):
        result = module.apply({"params": params}, x)
    for number in range(2):
        kernel = params["kernel"] + layer.down[number] @ layer.up[number]
        wanted = module.apply({"params": {**params, "kernel": kernel}}, x[number][None])
        np.testing.assert_allclose(result[number][None], wanted, rtol=1e-4, atol=1e-4)


def test_half_precision_stays_so() -> None:
    layer = Layer(*(jnp.full(shape, 0.5, jnp.bfloat16) for shape in ((2, 3, 4), (2, 4, 5))))
    params = {"kernel": jnp.ones((3, 5), jnp.bfloat16), "bias": jnp.zeros(5, jnp.bfloat16)}
    with adding({(): layer}, images_first=False):
        result = nn.Dense(5).apply({"params": params}, jnp.ones((4, 3), jnp.bfloat16))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(result, np.float32), 6)


def test_the_shape_follows_from_the_adapters_of_one_image() -> None:
    assert shape_of(IMAGES[0]) == shape_of(IMAGES[1]) == Shape(4, 4, 4, 4)
    assert shape_of([adapter(1, 5), adapter(2, 12)]) == Shape(32, 32, 32, 32)
    assert shape_of([adapter(1, 16, part="to_q"), adapter(2, 3, part="conv1")]) == Shape(16, 0, 4, 0)
    assert shape_of([adapter(1, 9, text_encoder=0)]) == Shape(16, 16, 16, 0)
    assert shape_of([adapter(1, 9, unet=0)]) == Shape(0, 0, 0, 16)
    assert shape_of([adapter(1, 128, part="mlp/fc1")]) == Shape(0, 0, 0, 128)
    assert shape_of([]) == Shape(0, 0, 0, 0)


def test_only_what_is_of_plain_low_rank_is_done_so() -> None:
    path = ("unet", "conv_in", "kernel")
    down, up = np.ones((4, 2), np.float32), np.ones((3, 16), np.float32)
    middle = np.arange(54, dtype=np.float32).reshape(3, 3, 2, 3)
    factors = low_rank({path: LowRank(Product(down, up, middle))})
    assert factors is not None
    assert factors[path].down.shape == (3, 3, 4, 3)
    np.testing.assert_array_equal(factors[path].down[0, 0], np.broadcast_to(middle[0, 0].sum(0), (4, 3)))
    others: Mapping[str, Any] = {
        "DoRA": {path: LowRank(Product(down, up), np.ones((1, 16), np.float32))},
        "a bias": {("unet", "conv_in", "bias"): Difference(np.ones(16, np.float32))},
        "a difference": {path: Difference(np.ones((3, 3, 4, 16), np.float32))},
    }
    assert [name for name, changes in others.items() if low_rank(changes) is not None] == []
