"""Token merging against the same written out token by token; against tomesd it is compared live (`tests/parity`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.models.attention import SpatialTransformer
from sdjax.models.token_merging import MAX_RATIO, PLACES, match, token_merging, windows
from tests import toys

CHANNELS = 6
# Of a feature map, and of what cross-attention looks at.
SHAPES = ((4, 4, 6, 8), (4, 3, 5))


def tokens_of(seed, size, batch=2):
    return np.random.RandomState(seed).standard_normal((batch, size[0] * size[1], CHANNELS)).astype(np.float32)


def places_of(seed, size, batch=2):
    return np.random.RandomState(seed).randint(0, PLACES, (batch, *windows(size))).astype(np.int32)


def by_hand(x, size, places, ratio):
    """(tokens after self-attention that does nothing, how many there were) of one image."""
    x = x.astype(np.float64)
    destinations = [
        (2 * row + places[row, column] // 2) * size[1] + 2 * column + places[row, column] % 2
        for row in range(places.shape[0])
        for column in range(places.shape[1])
    ]
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    best = {
        token: max((directions[token] @ directions[each], each) for each in destinations)
        for token in range(len(x))
        if token not in destinations
    }
    merged = sorted(best, key=lambda token: best[token], reverse=True)[: int(len(x) * ratio)]
    result = x.copy()
    for destination in destinations:
        group = [destination, *(token for token in merged if best[token][1] == destination)]
        result[group] = x[group].mean(axis=0)
    return result, len(x) - len(merged)


CASES = [(0, (4, 6), 0.0), (1, (4, 6), 0.3), (2, (4, 6), MAX_RATIO), (3, (5, 7), 0.5), (4, (2, 2), 0.5)]


@pytest.mark.parametrize("seed, size, ratio", CASES)
def test_tokens_are_averaged_with_those_they_are_most_like(seed, size, ratio):
    x, places = tokens_of(seed, size), places_of(seed, size)
    merge = match(jnp.asarray(x), size, jnp.asarray(places), ratio)
    fewer = merge.apply(jnp.asarray(x))
    found = np.asarray(merge.undo(fewer))
    for image in range(len(x)):
        expected, count = by_hand(x[image], size, places[image], ratio)
        assert fewer.shape[1] == count
        np.testing.assert_allclose(found[image], expected, rtol=1e-5, atol=1e-6)


def test_tokens_of_half_precision_are_averaged_in_float32():
    x = jnp.asarray(tokens_of(3, (4, 4)), jnp.bfloat16)
    merge = match(x, (4, 4), jnp.asarray(places_of(3, (4, 4))), 0.5)
    whole = merge.apply(x.astype(jnp.float32))
    assert merge.apply(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(merge.apply(x), whole.astype(jnp.bfloat16))


@pytest.mark.parametrize("size, acts", [((4, 6), True), ((2, 3), False)])
def test_self_attention_of_one_size_alone_has_fewer_tokens(size, acts):
    network = SpatialTransformer(heads=2, layers=2, groups=4, use_linear_projection=True)
    x, context = (jnp.asarray(np.random.RandomState(0).standard_normal(shape), jnp.float32) for shape in SHAPES)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, context))
    params = toys.random_params(shapes, np.random.RandomState(2))
    layers = []

    def choose(layer, count):
        layers.append((layer, count))
        return jnp.zeros((2, *count), jnp.int32)  # of two images in two branches

    plain = network.apply(params, x, context)
    with token_merging(0.5, size, choose):
        merged = network.apply(params, x, context)
    assert layers == ([(0, (2, 3)), (1, (2, 3))] if acts else [])
    assert np.array_equal(plain, merged) != acts
