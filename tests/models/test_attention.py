"""Attention against its definition, where queries are taken in chunks and where they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.models.attention import Attention, dot_product_attention


def defined(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v, in float64."""
    scores = np.einsum("bqhd,bkhd->bhqk", *(x.astype(np.float64) for x in (query, key))) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value.astype(np.float64))


# In chunks are 1536 and 1100, which is no multiple of a chunk.
@pytest.mark.parametrize("tokens", [7, 1024, 1100, 1536])
def test_attention_is_what_its_definition_says(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    query, key, value = (rng.standard_normal((2, tokens, 2, 4)).astype(np.float32) for _ in range(3))
    found = np.asarray(jax.jit(dot_product_attention)(query, key, value))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, defined(query, key, value), rtol=0, atol=2e-6)


@pytest.mark.parametrize("tokens", [512, 2048])
def test_sums_over_many_keys_do_not_overflow(tokens: int) -> None:
    query = jnp.zeros((1, tokens, 1, 2), jnp.float16)
    value = jnp.full((1, tokens, 1, 2), 200, jnp.float16)
    found = jax.jit(dot_product_attention)(query, query, value)
    assert found.dtype == jnp.float16
    np.testing.assert_array_equal(np.asarray(found, np.float32), 200)


@pytest.mark.parametrize(("platform", "chunk"), [("cpu", "8200x128"), ("cuda", "2734x8200"), ("tpu", "2734x8200")])
def test_no_platform_makes_the_whole_matrix_of_many_scores(platform: str, chunk: str) -> None:
    tokens = jax.ShapeDtypeStruct((1, 8200, 1, 4), jnp.float32)
    lowered = jax.jit(dot_product_attention).trace(tokens, tokens, tokens).lower(lowering_platforms=(platform,))
    assert chunk in lowered.as_text()
    assert "8200x8200" not in lowered.as_text()


def test_a_bias_that_an_adapter_brought_is_added() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 3, 8))
    biased = jax.tree.map(lambda leaf: leaf + 0.1, Attention(2, qkv_bias=True).init(jax.random.key(1), x))
    expected = Attention(2, qkv_bias=True).apply(biased, x)
    np.testing.assert_array_equal(Attention(2).apply(biased, x), expected)
    layers = {name: {"kernel": layer["kernel"]} for name, layer in biased["params"].items() if name != "to_out_0"}
    without = Attention(2).apply({"params": {**biased["params"], **layers}}, x)
    assert not np.allclose(without, expected, atol=1e-3)
