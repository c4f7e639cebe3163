"""Attention off the CPU: the accelerators' flash kernels, and a form in chunks for whatever they do not take.

A flash kernel (Dao et al. 2022, arXiv:2205.14135) keeps scores on the chip and writes none to memory. On TPUs it is
JAX's own splash attention, on NVIDIA cuDNN's. The forms here have no mask: text is short, so masked attention is not
worth a kernel.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float

# One of (query, key, value).
Form = Callable[[Array, Array, Array], Array]

# From so many queries and keys on a kernel is taken: the scores of fewer stay on the chip anyway.
_KERNEL_FROM = 256
# Bytes of scores that the form in chunks holds at once.
_SCORE_BYTES = 96 << 20
# Sequences on TPUs come in blocks of whole registers of 128 lanes; long ones in blocks of four.
_LANES = 128
_LONG_BLOCK, _LONG_FROM = 512, 2048
# Values of keys in one block on a TPU: with those of values, two of each at a time, a quarter of the 16 MB it may use.
_KEY_BLOCK_VALUES = 512 * 1024
# The widest head that cuDNN takes on every GPU that has its flash attention, and the first generation of these.
_CUDNN_WIDTH, _CUDNN_CAPABILITY = 128, 8.0


def in_chunks(
    attend: Form, query: Float[Array, "b q h d"], key: Float[Array, "b k h d"], value: Float[Array, "b k h d"]
) -> Float[Array, "b q h d"]:
    """A form that writes all its scores out, over chunks of queries: as many as have 96 MB of them, at least one."""
    batch, length, heads, width = query.shape
    most = max(1, _SCORE_BYTES // (4 * batch * heads * key.shape[1]))
    count = -(-length // most)
    if count == 1:
        return attend(query, key, value)
    size = -(-length // count)
    query = jnp.pad(query, ((0, 0), (0, count * size - length), (0, 0), (0, 0)))
    parts = jnp.moveaxis(query.reshape(batch, count, size, heads, width), 1, 0)
    out = lax.map(lambda part: attend(part, key, value), parts)
    return jnp.moveaxis(out, 0, 1).reshape(batch, count * size, heads, width)[:, :length]


def cudnn(
    query: Float[Array, "b q h d"], key: Float[Array, "b k h d"], value: Float[Array, "b k h d"]
) -> Float[Array, "b q h d"]:
    """cuDNN's flash attention, on NVIDIA alone."""
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


@functools.partial(jax.jit, inline=True)
def splash(
    query: Float[Array, "b q h d"], key: Float[Array, "b k h d"], value: Float[Array, "b k h d"]
) -> Float[Array, "b q h d"]:
    """JAX's splash attention, on TPUs alone (or where `pltpu.force_tpu_interpret_mode` stands in for one).

    The kernel takes heads as (width, tokens): tokens fill the lanes, of which heads narrower than 128 would leave some
    empty in memory.
    """
    batch, _, heads, width = query.shape
    lengths = query.shape[1], key.shape[1]
    filled = padded_length(lengths[0]), padded_length(lengths[1])

    def by_head(x: Array, size: int) -> Array:
        x = jnp.swapaxes(x, 1, 2).reshape(batch * heads, x.shape[1], width)
        return jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0)))

    attend = _splash_kernel(batch * heads, *filled, width, lengths[1])
    out = attend(by_head(query * width**-0.5, filled[0]), by_head(key, filled[1]), by_head(value, filled[1]))
    return jnp.swapaxes(out.reshape(batch, heads, filled[0], width), 1, 2)[:, : lengths[0]]


def _splash_kernel(heads: int, queries: int, keys: int, width: int, looked_at: int) -> Form:
    """The kernel for whole blocks of queries and keys; the keys from `looked_at` on are filled in."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block_q = next(size for size in (_LONG_BLOCK, 256, _LANES) if queries % size == 0)
    block_kv, step = key_blocks(keys, width)
    layout = kernel.QKVLayout.SEQ_MINOR
    sizes = kernel.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=step,
        block_q_dkv=block_q, block_kv_dkv=step, block_kv_dkv_compute=step, block_q_dq=block_q, block_kv_dq=step,
        q_layout=layout, k_layout=layout, v_layout=layout,
    )  # fmt: skip
    mask = masks.MultiHeadMask([masks.FullMask((queries, keys))] * heads)
    attend = kernel.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    if looked_at == keys:
        return attend
    # Keys that were filled in are of another segment, which no query looks at.
    segments = kernel.SegmentIds(jnp.zeros(queries, jnp.int32), (jnp.arange(keys) >= looked_at).astype(jnp.int32))
    return functools.partial(attend, segment_ids=segments)


def padded_length(length: int) -> int:
    """What a sequence on a TPU is filled up to: whole blocks."""
    unit = _LONG_BLOCK if length >= _LONG_FROM else _LANES
    return -(-length // unit) * unit


def key_blocks(length: int, width: int) -> tuple[int, int]:
    """(keys in memory on the chip, keys in one step) on a TPU, for a filled-up length: the most that divide it and fit.

    While all keys are there, they are read once for all queries of a head.
    """
    most = max(_LANES, _KEY_BLOCK_VALUES // width)
    block = max(size for size in range(_LANES, min(most, length) + 1, _LANES) if length % size == 0)
    return block, max(size for size in range(_LANES, min(_LONG_BLOCK, block) + 1, _LANES) if block % size == 0)


def kernels(queries: int, keys: int, width: int, dtype: DTypeLike) -> Mapping[str, Form]:
    """The kernels that take so many queries and keys, by the platform's name in `lax.platform_dependent`.

    JAX traces all of them wherever a program is made, so there are only those of platforms that can be compiled for
    here: TPUs where libtpu is installed, NVIDIA where its devices are.
    """
    found: dict[str, Form] = {}
    if min(queries, keys) < _KERNEL_FROM or width % 8:
        return found
    if dtype == jnp.bfloat16 and _has_libtpu():
        found["tpu"] = splash
    if dtype in (jnp.bfloat16, jnp.float16) and width <= _CUDNN_WIDTH and _has_cudnn_attention():
        found["cuda"] = cudnn
    return found


@functools.cache
def _has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


@functools.cache
def _has_cudnn_attention() -> bool:
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        return False
    return all(float(device.compute_capability) >= _CUDNN_CAPABILITY for device in devices)
