"""Scaled dot-product attention and the transformer blocks of the UNet."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from sdjax.models import flash_attention
from sdjax.models.convolution import Conv

# Queries of a block on the CPU, and heads: a block's scores stay in the caches, and two cores have a head each
# (measured at 4096 tokens, 8 heads of 40).
_QUERY_CHUNK, _HEAD_CHUNK = 128, 2
# Scores that the CPU computes in one block, 4 MB of them.
_ONE_BLOCK = 1024 * 1024


def _scores_to_values(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "#b #q k"] | None,
) -> Float[Array, "b q h d"]:
    """softmax(q k^T / sqrt(d)) v, the scores and the softmax in float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * (query.shape[-1] ** -0.5)
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1)
    # Sums over keys, and their totals, can be too large for float16.
    out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (out / jnp.swapaxes(total, 1, 2)[..., None]).astype(value.dtype)


def _block(
    query: Float[Array, "h d q"],
    key: Float[Array, "h k d"],
    value: Float[Array, "h d k"],
    mask: Bool[Array, "h k"] | None,
) -> Float[Array, "h d q"]:
    """The same for some heads and queries, keys before queries: XLA sums and compares whole vectors of queries."""
    scores = jnp.einsum("hkd,hdq->hkq", key, query, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[..., None], scores, jnp.finfo(jnp.float32).min)
    most = lax.stop_gradient(scores.max(axis=1, keepdims=True))
    weights = jnp.exp((scores - most) * (query.shape[1] ** -0.5))
    out = jnp.einsum("hdk,hkq->hdq", value, weights.astype(value.dtype), preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=1, keepdims=True)).astype(value.dtype)


def _in_blocks(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "#b 1 k"] | None,
) -> Float[Array, "b q h d"]:
    """The same for the CPU, a block of heads and queries at a time; the last is filled up with zeros."""
    batch, length, heads, width = query.shape
    keys, rows = key.shape[1], batch * heads
    whole = rows * length * keys <= _ONE_BLOCK
    side = rows if whole else _HEAD_CHUNK if rows % _HEAD_CHUNK == 0 else 1
    chunk = length if whole else min(length, _QUERY_CHUNK)
    chunks = -(-length // chunk)

    def by_heads(x: Array) -> Array:
        return x.reshape(rows // side, side, *x.shape[2:])

    query = jnp.pad(query, ((0, 0), (0, chunks * chunk - length), (0, 0), (0, 0)))
    query = query.reshape(batch, chunks, chunk, heads, width).transpose(0, 3, 1, 4, 2)
    arrays = [by_heads(x) for x in (query, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 3, 1))]
    if mask is not None:
        arrays.append(by_heads(jnp.broadcast_to(mask, (batch, heads, keys))))

    def some_heads(arrays: list[Array]) -> Array:
        parts, k, v, *masks = arrays
        seen = masks[0] if masks else None
        return lax.map(lambda part: _block(part, k, v, seen), jnp.swapaxes(parts, 0, 1))

    out = lax.map(some_heads, arrays)  # groups of heads, chunks, heads, widths, queries
    out = out.transpose(0, 2, 1, 4, 3).reshape(batch, heads, chunks * chunk, width)
    return jnp.swapaxes(out, 1, 2)[:, :length]


def dot_product_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "#b #q k"] | None = None,
) -> Float[Array, "b q h d"]:
    """Attention over `h` heads of width `d`; `mask` is True where a query may look.

    Scores and softmax are float32 whatever the inputs are, which is what `upcast_attention` asks for.
    """
    if mask is not None:
        if mask.shape[1] > 1:
            return _scores_to_values(query, key, value, mask)
        return lax.platform_dependent(query, key, value, mask, cpu=_in_blocks, default=_scores_to_values)
    whole = functools.partial(_scores_to_values, mask=None)
    kernels = flash_attention.kernels(query.shape[1], key.shape[1], query.shape[3], query.dtype)
    elsewhere = functools.partial(flash_attention.in_chunks, whole)
    on_cpu = functools.partial(_in_blocks, mask=None)
    return lax.platform_dependent(query, key, value, cpu=on_cpu, **kernels, default=elsewhere)


class Attention(nn.Module):
    """Multi-head attention of diffusers' `Attention`: to_q, to_k, to_v, to_out.0.

    Attributes:
      heads: number of heads; the width of one is `channels / heads`.
      qkv_bias: whether the three input projections have a bias (the VAE's do).

    `mask` is True where the context may be looked at.
    """

    heads: int
    qkv_bias: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b m e"] | None = None,
        mask: Bool[Array, "b m"] | None = None,
    ) -> Float[Array, "b n c"]:
        channels = x.shape[-1]
        source = x if context is None else context

        def split(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.heads, channels // self.heads)

        def projected(name: str, y: Array) -> Array:
            layer = nn.Dense(channels, use_bias=self.qkv_bias, name=name)
            y = layer(y)
            params = layer.variables["params"]
            # An adapter may bring a bias to a layer that has none of its own.
            return y if self.qkv_bias or "bias" not in params else y + params["bias"].astype(y.dtype)[None, None]

        query = split(projected("to_q", x))
        key, value = split(projected("to_k", source)), split(projected("to_v", source))
        allowed = None if mask is None else mask[:, None]
        out = dot_product_attention(query, key, value, allowed).reshape(x.shape)
        return nn.Dense(channels, name="to_out_0")(out)


class GEGLU(nn.Module):
    """Gated linear unit with an exact GELU gate (Shazeer 2020, arXiv:2002.05202)."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        hidden, gate = jnp.split(nn.Dense(2 * self.channels, name="proj")(x), 2, axis=-1)
        return hidden * jax.nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU of four times the width, and back."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        hidden = GEGLU(4 * x.shape[-1], name="net_0")(x)
        return nn.Dense(x.shape[-1], name="net_2")(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each added to its normalised input.

    With `only_cross_attention` the first attention looks at the context as well.
    """

    heads: int
    only_cross_attention: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b m e"], mask: Bool[Array, "b m"] | None = None
    ) -> Float[Array, "b n c"]:
        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)

        first = (context, mask) if self.only_cross_attention else (None, None)
        x = x + Attention(self.heads, name="attn1")(norm("norm1")(x), *first)
        x = x + Attention(self.heads, name="attn2")(norm("norm2")(x), context, mask)
        return x + FeedForward(name="ff")(norm("norm3")(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map (diffusers' `Transformer2DModel`).

    The projections in and out are 1x1 convolutions (SD1) or linear layers (SD2).
    """

    heads: int
    layers: int
    groups: int
    use_linear_projection: bool
    only_cross_attention: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b m e"], mask: Bool[Array, "b m"] | None = None
    ) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        y = nn.GroupNorm(self.groups, epsilon=1e-6, use_fast_variance=False, name="norm")(x)
        if self.use_linear_projection:
            y = nn.Dense(channels, name="proj_in")(y.reshape(batch, height * width, channels))
        else:
            y = Conv(channels, (1, 1), name="proj_in")(y).reshape(batch, height * width, channels)
        for index in range(self.layers):
            block = TransformerBlock(self.heads, self.only_cross_attention, name=f"transformer_blocks_{index}")
            y = block(y, context, mask)
        if self.use_linear_projection:
            y = nn.Dense(channels, name="proj_out")(y).reshape(x.shape)
        else:
            y = Conv(channels, (1, 1), name="proj_out")(y.reshape(x.shape))
        return x + y
