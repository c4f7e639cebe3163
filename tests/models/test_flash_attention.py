"""Attention off the CPU, as far as a CPU can tell: what is computed, and which form takes which arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, DTypeLike

from sdjax.models import flash_attention
from sdjax.models.attention import dot_product_attention


def arrays(queries: int, keys: int, width: int, *, batch: int = 1, heads: int = 2) -> tuple[Array, Array, Array]:
    """Random (query, key, value) in bfloat16."""
    drawn = jax.random.split(jax.random.key(0), 3)
    lengths = queries, keys, keys
    query, key, value = (
        jax.random.normal(key, (batch, length, heads, width), jnp.bfloat16)
        for key, length in zip(drawn, lengths, strict=True)
    )
    return query, key, value


def exact(query: Array, key: Array, value: Array) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v in float64."""
    q, k, v = (np.asarray(x.astype(jnp.float32), np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), v)


# --- The form in chunks ---


@pytest.mark.parametrize("queries", [96, 100, 7])
def test_chunks_of_queries_give_what_all_at_once_do(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (x.astype(jnp.float32) for x in arrays(queries, 64, 16))
    monkeypatch.setattr(flash_attention, "_SCORE_BYTES", 2 * 64 * 4 * 32)
    out = flash_attention.in_chunks(dot_product_attention, query, key, value)
    np.testing.assert_allclose(out, exact(query, key, value), atol=1e-6)


def test_chunks_have_at_most_96_mb_of_scores() -> None:
    held: list[int] = []

    def attend(query: Array, key: Array, value: Array) -> Array:
        held.append(4 * query.shape[0] * query.shape[1] * query.shape[2] * key.shape[1])
        return query

    shapes = [jax.ShapeDtypeStruct((8, 9216, 5, 64), jnp.bfloat16)] * 3
    assert jax.eval_shape(functools.partial(flash_attention.in_chunks, attend), *shapes).shape == shapes[0].shape
    assert 90 << 20 < held[0] <= 96 << 20


# --- Splash attention, interpreted ---


@pytest.mark.parametrize(("queries", "keys", "width"), [(128, 128, 40), (100, 200, 80)])
def test_splash_attention_is_attention_for_lengths_that_are_no_whole_blocks_too(
    queries: int, keys: int, width: int
) -> None:
    given = arrays(queries, keys, width)
    with pltpu.force_tpu_interpret_mode():
        out = flash_attention.splash(*given)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact(*given), atol=4e-3)


def test_splash_attention_is_attention_over_several_blocks_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "_KEY_BLOCK_VALUES", 128 * 72)
    given = arrays(128, 256, 72, heads=1)  # of a width that no other test has: programs are kept by shape
    with pltpu.force_tpu_interpret_mode():
        out = flash_attention.splash(*given)
    np.testing.assert_allclose(out.astype(jnp.float32), exact(*given), atol=4e-3)


def test_splash_attention_has_a_gradient() -> None:
    given = arrays(256, 256, 40)
    grads = jax.eval_shape(
        jax.grad(lambda *x: flash_attention.splash(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2)), *given
    )
    assert [grad.shape for grad in grads] == [x.shape for x in given]


@pytest.mark.parametrize(
    ("length", "filled"), [(256, 256), (300, 384), (1024, 1024), (2047, 2048), (4096, 4096), (4160, 4608), (9216, 9216)]
)
def test_sequences_are_filled_up_to_whole_blocks(length: int, filled: int) -> None:
    assert flash_attention.padded_length(length) == filled


@pytest.mark.parametrize(
    ("length", "width", "blocks"),
    [
        (4096, 40, (4096, 512)),  # SD1: all keys at once
        (4096, 64, (4096, 512)),  # SD2
        (9216, 64, (4608, 512)),
        (4096, 512, (1024, 512)),  # the VAE
        (384, 40, (384, 384)),
        (256, 160, (256, 256)),
    ],
)
def test_as_many_keys_as_fit_are_in_one_block(length: int, width: int, blocks: tuple[int, int]) -> None:
    assert flash_attention.key_blocks(length, width) == blocks


# --- Which form takes what ---


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs can be compiled for TPUs and NVIDIA."""
    monkeypatch.setattr(flash_attention, "_has_libtpu", lambda: True)
    monkeypatch.setattr(flash_attention, "_has_cudnn_attention", lambda: True)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(
    ("queries", "keys", "width", "dtype", "expected"),
    [
        (4096, 4096, 40, jnp.bfloat16, {"tpu", "cuda"}),
        (4096, 4096, 40, jnp.float16, {"cuda"}),
        (4096, 4096, 40, jnp.float32, set()),
        (4096, 4096, 512, jnp.bfloat16, {"tpu"}),  # the VAE: wider than cuDNN takes
        (256, 256, 160, jnp.bfloat16, {"tpu"}),
        (4096, 77, 40, jnp.bfloat16, set()),  # text
        (64, 64, 160, jnp.bfloat16, set()),
        (4096, 4096, 20, jnp.bfloat16, set()),
    ],
)
def test_kernels_take_long_sequences_of_half_precision(
    queries: int, keys: int, width: int, dtype: DTypeLike, expected: set[str]
) -> None:
    assert flash_attention.kernels(queries, keys, width, dtype).keys() == expected


def test_without_libtpu_and_gpus_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "_has_libtpu", lambda: False)
    assert not flash_attention.kernels(4096, 4096, 40, jnp.bfloat16)


@pytest.mark.usefixtures("everywhere")
def test_on_the_cpu_no_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "_has_cudnn_attention", lambda: False)
    given = arrays(256, 256, 40)
    out = jax.jit(dot_product_attention)(*given)
    np.testing.assert_allclose(out.astype(jnp.float32), exact(*given), atol=1e-2)
