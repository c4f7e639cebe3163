"""Groups of arrays are trees for JAX, and frozen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float32, Int32, TypeCheckError, jaxtyped

from sdjax.diffusion.array_group import array_group
from tests.typechecker import checked


@jaxtyped(typechecker=checked)
@array_group
class Points:
    places: Float32[Array | np.ndarray, "n d"]
    labels: Int32[Array | np.ndarray, " n"]
    weights: Float32[Array | np.ndarray, " n"] | None = None


POINTS = Points(np.ones((2, 3), np.float32), np.arange(2, dtype=np.int32))


def test_a_group_is_checked_when_it_is_made():
    with pytest.raises(TypeCheckError):
        Points(np.ones((2, 3), np.float32), np.arange(3, dtype=np.int32))


def test_a_group_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        POINTS.labels = np.zeros(2, np.int32)


def test_its_branches_are_its_fields_in_their_order():
    leaves = jax.tree.flatten_with_path(POINTS)[0]
    assert [jax.tree_util.keystr(path) for path, _ in leaves] == [".places", ".labels"]
    assert [leaf is value for (_, leaf), value in zip(leaves, (POINTS.places, POINTS.labels), strict=True)] == [
        True
    ] * 2


def test_a_program_takes_and_gives_groups():
    doubled = jax.jit(lambda points: dataclasses.replace(points, places=2 * points.places))(POINTS)
    assert isinstance(doubled, Points) and doubled.weights is None
    np.testing.assert_array_equal(doubled.places, 2 * jnp.ones((2, 3)))


def test_jax_puts_groups_together_of_what_is_no_array():
    assert jax.tree.map(lambda values: values.shape, POINTS).labels == (2,)
