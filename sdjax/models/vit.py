"""A layer of the vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), named as transformers' `ViTLayer`."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from sdjax.models.attention import dot_product_attention


class _Linear(nn.Module):
    """A linear layer that transformers keeps in a module of its own."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        return nn.Dense(self.features, name="dense")(x)


class _SelfAttention(nn.Module):
    heads: int
    qkv_bias: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        channels = x.shape[-1]

        def project(name: str) -> Array:
            y = nn.Dense(channels, use_bias=self.qkv_bias, name=name)(x)
            return y.reshape(*y.shape[:2], self.heads, channels // self.heads)

        return dot_product_attention(project("query"), project("key"), project("value")).reshape(x.shape)


class _Attention(nn.Module):
    heads: int
    qkv_bias: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        attended = _SelfAttention(self.heads, self.qkv_bias, name="attention")(x)
        return _Linear(x.shape[-1], name="output")(attended)


class ViTLayer(nn.Module):
    """Attention and two linear layers, each added to its normalised input.

    Attributes:
      heads: number of heads; the width of one is `channels / heads`.
      hidden: channels between the two linear layers, where the exact GELU is.
      eps: what the layer norms add to a variance.
      qkv_bias: whether the attention's three input projections have a bias.
    """

    heads: int
    hidden: int
    eps: float
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=self.eps, use_fast_variance=False, name=name)

        x = x + _Attention(self.heads, self.qkv_bias, name="attention")(norm("layernorm_before")(x))
        hidden = _Linear(self.hidden, name="intermediate")(norm("layernorm_after")(x))
        return x + _Linear(x.shape[-1], name="output")(jax.nn.gelu(hidden, approximate=False))
