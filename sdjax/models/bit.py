"""BiT: the ResNet of standardised weights and group norms with which a hybrid vision transformer begins.

Kolesnikov et al. 2020, arXiv:1912.11370; Qiao et al. 2019, arXiv:1903.10520 (weight standardisation). Numbers match
transformers' `BitBackbone` with bottleneck layers and TensorFlow's padding, which is what the hybrid has.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdjax.models.config import MOST_CHANNELS, read_config, require, require_layers, require_positive
from sdjax.models.convolution import Conv

# Of the group norms, and of the variance by which a filter is divided.
_NORM_EPS, _WEIGHT_EPS = 1e-5, 1e-8
# The hidden channels of a bottleneck are a quarter of its output's, rounded to eights.
_BOTTLENECK, _ROUNDED = 4, 8

# Keys that transformers 4 writes into every config, nested ones too; what they say is for training or for text.
INFORMATIVE = frozenset(
    {
        "_attn_implementation_autoset", "_out_features", "_out_indices", "add_cross_attention", "architectures",
        "attention_probs_dropout_prob", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
        "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty",
        "do_sample", "drop_path_rate", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
        "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
        "hidden_dropout_prob", "id2label", "initializer_range", "is_decoder", "label2id", "length_penalty",
        "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
        "output_scores", "pad_token_id", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty",
        "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
        "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k",
        "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16",
    }
)  # fmt: skip
FIXED: dict[str, Any] = {
    "is_encoder_decoder": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
}
# What a config that leaves these out means.
_UNSAID = {
    "depths": (3, 4, 6, 3),
    "layer_type": "preactivation",
    "global_padding": None,
    "embedding_dynamic_padding": False,
}
_FIXED = {
    **FIXED,
    "model_type": "bit",
    "layer_type": "bottleneck",
    "global_padding": frozenset({"same", "SAME"}),
    "embedding_dynamic_padding": True,
    "hidden_act": "relu",
    "num_channels": 3,
    "output_stride": 32,
    "width_factor": 1,
    # All three stages, in order.
    "out_features": ("stage1", "stage2", "stage3"),
    "out_indices": (1, 2, 3),
    "stage_names": ("stem", "stage1", "stage2", "stage3"),
}


@dataclasses.dataclass(frozen=True)
class BitConfig:
    """`backbone_config` of a hybrid's `config.json`."""

    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024)
    depths: tuple[int, ...] = (3, 4, 9)
    num_groups: int = 32

    def __post_init__(self) -> None:
        require_positive(self, "embedding_size", "hidden_sizes", "depths", "num_groups", most=MOST_CHANNELS)
        require_layers(sum(self.depths), "depths")
        require(len(self.depths) == 3, f"depths = {self.depths} are not those of three stages")
        require(
            len(self.hidden_sizes) == len(self.depths),
            f"hidden_sizes = {self.hidden_sizes} are not those of three stages",
        )
        for size in (self.embedding_size, *self.hidden_sizes):
            require(size % self.num_groups == 0, f"a size of {size} is not a multiple of num_groups {self.num_groups}")
        for size in self.hidden_sizes:
            require(
                size % (_BOTTLENECK * _ROUNDED) == 0 and size // _BOTTLENECK % self.num_groups == 0,
                f"a hidden size of {size} has a quarter that is not a multiple of {_ROUNDED} and of num_groups",
            )

    @property
    def stride(self) -> int:
        """Pixels per feature of the last stage, along one side: four by the stem, two by each stage but the first."""
        return 4 * 2 ** (len(self.depths) - 1)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "config.json") -> "BitConfig":
        """Reads transformers' config; raises `ConfigError` for what is not implemented."""
        said = {**_UNSAID, **data}
        sizes = said.get("hidden_sizes")
        if isinstance(sizes, list | tuple):  # published configs have one more than stages, which means nothing
            said["hidden_sizes"] = sizes[: len(cls.depths)]
        return read_config(cls, said, fixed=_FIXED, informative=INFORMATIVE, where=where)


class _StandardisedConv(nn.Module):
    """A convolution without bias whose filters have mean zero and variance one; padded as TensorFlow's "SAME"."""

    features: int
    window: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        shape = (self.window, self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        wide = kernel.astype(jnp.float32)
        mean = wide.mean((0, 1, 2), keepdims=True)
        variance = jnp.square(wide - mean).mean((0, 1, 2), keepdims=True)
        standard = ((wide - mean) * lax.rsqrt(variance + _WEIGHT_EPS)).astype(kernel.dtype)
        strides = (self.stride, self.stride)
        plain = Conv(self.features, shape[:2], strides, padding="SAME", use_bias=False, parent=None)
        return plain.apply({"params": {"kernel": standard}}, x)


def _norm(config: BitConfig, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, epsilon=_NORM_EPS, use_fast_variance=False, name=name)


class _Shortcut(nn.Module):
    """The input of a stage's first layer, brought to the size of its output."""

    config: BitConfig
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        return _norm(self.config, "norm")(_StandardisedConv(self.channels, 1, self.stride, name="conv")(x))


class _Bottleneck(nn.Module):
    """Three convolutions, the middle one at a quarter of the channels' number and with the stride, and a shortcut."""

    config: BitConfig
    channels: int
    stride: int
    is_first: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        cfg, hidden = self.config, self.channels // _BOTTLENECK
        shortcut = _Shortcut(cfg, self.channels, self.stride, name="downsample")(x) if self.is_first else x
        y = jax.nn.relu(_norm(cfg, "norm1")(_StandardisedConv(hidden, 1, name="conv1")(x)))
        y = jax.nn.relu(_norm(cfg, "norm2")(_StandardisedConv(hidden, 3, self.stride, name="conv2")(y)))
        y = _norm(cfg, "norm3")(_StandardisedConv(self.channels, 1, name="conv3")(y))
        return jax.nn.relu(y + shortcut)


class _Stage(nn.Module):
    """Layers at one resolution, the first of which reduces."""

    config: BitConfig
    channels: int
    depth: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        for index in range(self.depth):
            is_first = index == 0
            stride = self.stride if is_first else 1
            x = _Bottleneck(self.config, self.channels, stride, is_first, name=f"layers_{index}")(x)
        return x


class _Encoder(nn.Module):
    """All stages; gives the output of each."""

    config: BitConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> list[Float[Array, "b _ _ _"]]:
        found = []
        for index, (channels, depth) in enumerate(zip(self.config.hidden_sizes, self.config.depths, strict=True)):
            x = _Stage(self.config, channels, depth, 1 if index == 0 else 2, name=f"layers_{index}")(x)
            found.append(x)
        return found


class _Stem(nn.Module):
    """A wide convolution and a maximum, each of which halves the size; the maximum's padding is zero."""

    config: BitConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b i j d"]:
        x = _StandardisedConv(self.config.embedding_size, 7, 2, name="convolution")(x)
        x = jax.nn.relu(_norm(self.config, "norm")(x))
        # After the ReLU nothing is below zero, so that the usual padding, which never is the maximum, is the same.
        return nn.max_pool(x, (3, 3), (2, 2), "SAME")


class BitFeatures(NamedTuple):
    """What a hybrid takes: the output of each stage, of 4, 8 and 16 pixels per feature."""

    first: Float[Array, "b _ _ _"]
    second: Float[Array, "b _ _ _"]
    third: Float[Array, "b _ _ _"]


class Bit(nn.Module):
    """Pixels to the features of the three stages."""

    config: BitConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> BitFeatures:
        return BitFeatures(*_Encoder(self.config, name="encoder")(_Stem(self.config, name="embedder")(x)))
