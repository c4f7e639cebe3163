"""`unet/config.json` of Stable Diffusion 1 and 2 (diffusers' `UNet2DConditionModel`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sdjax.models.config import (
    MOST_CHANNELS,
    MOST_TOKENS,
    read_config,
    require,
    require_layers,
    require_levels,
    require_positive,
    require_sample_size,
)

# Blocks, and whether they have transformers.
DOWN_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP_ATTENTION = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_CLASS_EMBEDDINGS = (None, "timestep", "identity", "projection")

# Switches of diffusers' class which no Stable Diffusion 1 or 2 checkpoint sets otherwise.
_FIXED = {
    "act_fn": frozenset({"silu", "swish"}),
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": frozenset({None, False}),
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """`unet/config.json`.

    `attention_head_dim` is, against its name, the number of heads (per level if a tuple): diffusers
    reads it so, and all published checkpoints are written so.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    upcast_attention: bool = False

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        require_levels(
            self, "block_out_channels", "down_block_types", "up_block_types", "only_cross_attention",
            "layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim",
        )  # fmt: skip
        require_positive(
            self, "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
            "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim", most=MOST_CHANNELS,
        )  # fmt: skip
        require_positive(self, "norm_eps", most=1.0)
        require_sample_size(self.sample_size)
        for name, most in (("num_class_embeds", MOST_TOKENS), ("projection_class_embeddings_input_dim", MOST_CHANNELS)):
            if getattr(self, name) is not None:
                require_positive(self, name, most=most)
        require(
            0 <= self.freq_shift <= 1,
            f"freq_shift = {self.freq_shift}: expected a number from 0 to 1",
        )
        for kind in self.down_block_types:
            require(kind in DOWN_ATTENTION, f"down block {kind!r} is not one of {', '.join(DOWN_ATTENTION)}")
        for kind in self.up_block_types:
            require(kind in UP_ATTENTION, f"up block {kind!r} is not one of {', '.join(UP_ATTENTION)}")
        for name in (
            "down_block_types", "up_block_types", "only_cross_attention", "layers_per_block",
            "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim",
        ):  # fmt: skip
            value = getattr(self, name)
            require(
                not isinstance(value, tuple) or len(value) == levels,
                f"{name} = {value} has not one entry for each of the {levels} levels",
            )
        require(
            len(set(self.per_level("cross_attention_dim"))) == 1,
            f"cross_attention_dim = {self.cross_attention_dim}: one text encoder has one width",
        )
        require(
            self.class_embed_type in _CLASS_EMBEDDINGS,
            f"class_embed_type = {self.class_embed_type!r} is not one of {_CLASS_EMBEDDINGS}",
        )
        require(
            self.class_embed_type != "projection" or self.projection_class_embeddings_input_dim is not None,
            "class_embed_type 'projection' needs projection_class_embeddings_input_dim",
        )
        require(
            all(channels % self.norm_num_groups == 0 for channels in self.block_out_channels),
            f"block_out_channels {self.block_out_channels} are not multiples of norm_num_groups {self.norm_num_groups}",
        )
        heads = self.per_level("attention_head_dim")
        require(
            all(self.block_out_channels[level] % heads[level] == 0 for level in self._levels_with_attention),
            f"block_out_channels {self.block_out_channels} are not multiples of the head counts "
            f"{self.attention_head_dim} where there is attention",
        )
        require_layers(self.layers, "block_out_channels", "layers_per_block", "transformer_layers_per_block")

    @property
    def layers(self) -> int:
        """Residual blocks, down and up, and the layers of the transformers after them."""
        transformers, attends = self.per_level("transformer_layers_per_block"), self._levels_with_attention
        return sum(
            (2 * count + 1) * (1 + transformers[level] * (level in attends))
            for level, count in enumerate(self.per_level("layers_per_block"))
        )

    @property
    def skip_connections(self) -> int:
        """How many features are kept for the way up: that of `conv_in`, of each layer, of each downsampler."""
        return 1 + sum(self.per_level("layers_per_block")) + len(self.block_out_channels) - 1

    @property
    def largest_attention_level(self) -> int:
        """The first level that has transformers; each level halves the sides of the one before."""
        return min(self._levels_with_attention)

    @property
    def _levels_with_attention(self) -> set[int]:
        """Those of the way down and up, and the last, whose middle block has it."""
        down = {level for level, kind in enumerate(self.down_block_types) if DOWN_ATTENTION[kind]}
        up = {level for level, kind in enumerate(reversed(self.up_block_types)) if UP_ATTENTION[kind]}
        return down | up | {len(self.block_out_channels) - 1}

    def per_level(self, name: str) -> tuple[Any, ...]:
        """The field `name`, repeated for each level if it is a single value."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def has_class_embedding(self) -> bool:
        """Whether the network takes class labels (numbers, or vectors for 'identity' and 'projection')."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "unet/config.json") -> "UNetConfig":
        """Reads diffusers' config; raises `ConfigError` for what is not implemented."""
        return read_config(cls, data, fixed=_FIXED, where=where, classes=("UNet2DConditionModel",))
