"""Scaled dot-product attention and the transformer blocks of the UNet."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from sdjax.models import flash_attention
from sdjax.models.convolution import Conv

# Above this many query-key pairs per head the CPU takes queries in chunks: the whole matrix of scores
# no longer fits its caches (measured: 263 ms against 1261 ms at 4096 tokens, 8 heads of 40).
_CHUNKED_FROM = 1024 * 1024
_QUERY_CHUNK = 512


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


def _chunked(
    query: Float[Array, "b q h d"], key: Float[Array, "b k h d"], value: Float[Array, "b k h d"]
) -> Float[Array, "b q h d"]:
    """The same, one head and `_QUERY_CHUNK` queries at a time; the last chunk is filled up with zeros."""
    batch, length, _, width = query.shape
    chunks = -(-length // _QUERY_CHUNK)
    query = jnp.pad(query, ((0, 0), (0, chunks * _QUERY_CHUNK - length), (0, 0), (0, 0)))

    def one_head(arrays: tuple[Array, Array, Array]) -> Array:
        q, k, v = (x[:, :, None] for x in arrays)
        parts = jnp.moveaxis(q.reshape(batch, chunks, _QUERY_CHUNK, 1, width), 1, 0)
        out = lax.map(lambda part: _scores_to_values(part, k, v, None), parts)
        return jnp.moveaxis(out, 0, 1).reshape(batch, chunks * _QUERY_CHUNK, width)

    by_head = tuple(jnp.moveaxis(x, 2, 0) for x in (query, key, value))
    return jnp.moveaxis(lax.map(one_head, by_head), 0, 2)[:, :length]


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
        return _scores_to_values(query, key, value, mask)
    whole = functools.partial(_scores_to_values, mask=None)
    queries, keys, width = query.shape[1], key.shape[1], query.shape[3]
    on_cpu = _chunked if queries * keys > _CHUNKED_FROM else whole
    kernels = flash_attention.kernels(queries, keys, width, query.dtype)
    elsewhere = functools.partial(flash_attention.in_chunks, whole)
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
