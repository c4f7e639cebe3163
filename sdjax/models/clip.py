"""The CLIP text encoder: OpenAI's ViT-L/14 (SD1) and OpenCLIP's ViT-H/14 (SD2).

Radford et al. 2021, arXiv:2103.00020. Numbers match transformers' `CLIPTextModel`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdjax.models.attention import dot_product_attention
from sdjax.models.config import (
    MOST_CHANNELS,
    MOST_POSITIONS,
    MOST_TOKENS,
    check_class,
    read_config,
    require,
    require_layers,
    require_positive,
)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}

# Keys of transformers' configs that do not change the numbers of a forward pass.
_INFORMATIVE = frozenset(
    {
        "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dropout", "dtype",
        "eos_token_id", "id2label", "initializer_factor", "initializer_range", "label2id", "model_type",
        "pad_token_id", "projection_dim", "torch_dtype", "transformers_version", "problem_type",
        "return_dict", "tie_word_embeddings", "tokenizer_class", "use_cache",
    }
)  # fmt: skip
# A whole CLIP, or one with a projection, has the same text encoder; what else they have is accounted for by name.
_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel")
_MODEL_TYPES = ("clip_text_model", "clip")
_FIXED = {
    "output_attentions": False,
    "output_hidden_states": False,
    "is_encoder_decoder": False,
}


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """`config.json`."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require_positive(self, "hidden_size", "intermediate_size", "num_attention_heads", most=MOST_CHANNELS)
        require_positive(self, "vocab_size", most=MOST_TOKENS)
        # There is a start and an end around what a text says.
        require(
            3 <= self.max_position_embeddings <= MOST_POSITIONS,
            f"max_position_embeddings = {self.max_position_embeddings}: expected 3 to {MOST_POSITIONS}",
        )
        require_positive(self, "num_hidden_layers")
        require_layers(self.num_hidden_layers, "num_hidden_layers")
        require_positive(self, "layer_norm_eps", most=1.0)
        require(
            self.hidden_act in ACTIVATIONS,
            f"hidden_act = {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}",
        )
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}",
        )

    @property
    def layers(self) -> int:
        """As the other networks' configs have it."""
        return self.num_hidden_layers

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "config.json") -> "TextEncoderConfig":
        """Reads transformers' config; raises `ConfigError` for what is not implemented."""
        named = data.get("architectures")
        for name in named if isinstance(named, list | tuple) else [named]:
            check_class(name, _CLASSES, where, "architectures")
        check_class(data.get("model_type"), _MODEL_TYPES, where, "model_type")
        return read_config(cls, data, fixed=_FIXED, informative=_INFORMATIVE, where=where)


class TextEncoding(NamedTuple):
    """What the encoder gives.

    last_hidden_state: of the last layer that was not left out, after the final layer norm.
    hidden_states: the embeddings, then the output of each layer, before the final layer norm.
    """

    last_hidden_state: Float[Array, "b n c"]
    hidden_states: tuple[Float[Array, "b n c"], ...]


class _SelfAttention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], mask: Bool[Array, "b n"] | None) -> Float[Array, "b n c"]:
        length, channels = x.shape[1:]

        def project(name: str) -> Array:
            y = nn.Dense(channels, name=name)(x)
            return y.reshape(*y.shape[:2], self.heads, channels // self.heads)

        allowed = jnp.tril(jnp.ones((1, length, length), bool))
        if mask is not None:
            allowed = allowed & mask[:, None]
        out = dot_product_attention(project("q_proj"), project("k_proj"), project("v_proj"), allowed)
        return nn.Dense(channels, name="out_proj")(out.reshape(x.shape))


class _MLP(nn.Module):
    width: int
    activation: str

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        hidden = ACTIVATIONS[self.activation](nn.Dense(self.width, name="fc1")(x))
        return nn.Dense(x.shape[-1], name="fc2")(hidden)


class _Layer(nn.Module):
    config: TextEncoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], mask: Bool[Array, "b n"] | None) -> Float[Array, "b n c"]:
        cfg = self.config

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=cfg.layer_norm_eps, use_fast_variance=False, name=name)

        x = x + _SelfAttention(cfg.num_attention_heads, name="self_attn")(norm("layer_norm1")(x), mask)
        return x + _MLP(cfg.intermediate_size, cfg.hidden_act, name="mlp")(norm("layer_norm2")(x))


class TextEncoder(nn.Module):
    """Token ids to hidden states.

    `mask` is True at tokens that others may look at. `clip_skip` is how many of the last layers are left out before the
    final norm, for each text. `vectors` are more token embeddings, of each text its own: the ids from `vocab_size` on.
    """

    config: TextEncoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "b n"],
        mask: Bool[Array, "b n"] | None = None,
        clip_skip: Int[Array, " b"] | None = None,
        vectors: Float[Array, "b r c"] | None = None,
    ) -> TextEncoding:
        cfg = self.config
        tokens = nn.Embed(cfg.vocab_size, cfg.hidden_size, name="token_embedding")
        positions = nn.Embed(cfg.max_position_embeddings, cfg.hidden_size, name="position_embedding")
        if vectors is None:
            embedded = tokens(input_ids)
        else:
            known = input_ids < cfg.vocab_size
            row = jnp.clip(input_ids - cfg.vocab_size, 0, vectors.shape[1] - 1)
            learned = jnp.take_along_axis(vectors, row[..., None], axis=1)
            of_tokens = tokens(jnp.where(known, input_ids, 0))
            embedded = jnp.where(known[..., None], of_tokens, learned.astype(of_tokens.dtype))
        x = embedded + positions(jnp.arange(input_ids.shape[1]))[None]
        hidden_states = [x]
        for index in range(cfg.num_hidden_layers):
            x = _Layer(cfg, name=f"layers_{index}")(x, mask)
            hidden_states.append(x)
        if clip_skip is not None:
            from_end = cfg.num_hidden_layers - clip_skip[None, :, None, None]
            x = jnp.take_along_axis(jnp.stack(hidden_states), from_end, axis=0)[0]
        final = nn.LayerNorm(epsilon=cfg.layer_norm_eps, use_fast_variance=False, name="final_layer_norm")
        return TextEncoding(final(x), tuple(hidden_states))
