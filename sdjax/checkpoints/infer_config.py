"""The configs of networks, inferred from the names and shapes of the tensors in original single files."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdjax.checkpoints.tensors import CheckpointError, Tensor
from sdjax.families.known_models import by_token_width
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig

# Of the original code, which no file can say: groups of all norms, width of a head of CLIP.
_GROUPS = 32
_TEXT_HEAD = 64
# Heads of the UNet: a number in version 1, each of a width in version 2.
_HEADS_1, _HEAD_WIDTH_2 = 8, 64

# More than published networks have of anything: 24 layers of text, 12 blocks of a UNet.
_MOST_BLOCKS = 64


class Heads(NamedTuple):
    """How many attention heads each level of a UNet has: a number of them, or one for so many channels."""

    number: int | None = None
    width: int | None = None


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What is stored under one start of names: its shapes by the rest of the name."""

    where: str
    shapes: Mapping[str, tuple[int, ...]]

    def __getitem__(self, name: str) -> tuple[int, ...]:
        try:
            return self.shapes[name]
        except KeyError:
            raise CheckpointError(f"{self.where}{name} is missing: the file is not whole") from None

    def axis(self, name: str, axis: int) -> int:
        """The length of one axis of a tensor."""
        shape = self[name]
        if axis >= len(shape):
            raise CheckpointError(f"{self.where}{name} is {shape}, which has not {axis + 1} axes")
        return shape[axis]

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def has(self, start: str) -> bool:
        """Whether any name starts so."""
        return any(name.startswith(start) for name in self.shapes)

    def count(self, template: str) -> int:
        """How many of "block.{}." there are, from 0 on without a gap.

        Raises:
          CheckpointError: if they are more than any network has.
        """
        start, end = template.split("{}")
        found = {name.removeprefix(start).partition(end)[0] for name in self.shapes if name.startswith(start)}
        number = next(number for number in itertools.count() if str(number) not in found)
        if number > _MOST_BLOCKS:
            raise CheckpointError(f"{self.where}{template} counts {number}; expected at most {_MOST_BLOCKS}")
        return number


def under(tensors: Mapping[str, Tensor], start: str) -> Shapes:
    """The shapes of the tensors whose names start with `start`."""
    file = next((f"{tensor.file}: " for tensor in tensors.values()), "")
    return Shapes(
        file + start, {name.removeprefix(start): t.shape for name, t in tensors.items() if name.startswith(start)}
    )


def infer_unet(stored: Shapes, heads: Heads | None = None) -> UNetConfig:
    """The config of a UNet, but for its `sample_size`.

    Args:
      stored: what lies under `model.diffusion_model.`.
      heads: what the shapes can't tell; None for those of the version: 8 where the projections of transformers are
        convolutions (1), one for 64 channels where they are linear (2).

    Raises:
      CheckpointError: if names are missing.
      ConfigError: if there can be no such network.
    """
    channels: list[int] = []
    layers: list[int] = []
    attention: list[bool] = []
    transformers: list[int] = []
    level_open = False
    for block in range(1, stored.count("input_blocks.{}.")):
        start = f"input_blocks.{block}"
        if f"{start}.0.op.weight" in stored:
            level_open = False
            continue
        if not level_open:
            level_open = True
            channels.append(stored.axis(f"{start}.0.out_layers.3.weight", 0))
            layers.append(0)
            attention.append(stored.has(f"{start}.1."))
            transformers.append(stored.count(f"{start}.1.transformer_blocks.{{}}."))
        layers[-1] += 1
    middle = "middle_block.1"
    linear = len(stored[f"{middle}.proj_in.weight"]) == 2
    heads = heads or (Heads(width=_HEAD_WIDTH_2) if linear else Heads(number=_HEADS_1))
    depth = stored.count(f"{middle}.transformer_blocks.{{}}.")
    depths = tuple(number or depth for number in transformers)
    return UNetConfig(
        in_channels=stored.axis("input_blocks.0.0.weight", 1),
        out_channels=stored.axis("out.2.weight", 0),
        down_block_types=tuple("CrossAttnDownBlock2D" if given else "DownBlock2D" for given in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if given else "UpBlock2D" for given in reversed(attention)),
        block_out_channels=tuple(channels),
        layers_per_block=_one(tuple(layers)),
        norm_num_groups=_GROUPS,
        cross_attention_dim=stored.axis(f"{middle}.transformer_blocks.0.attn2.to_k.weight", 1),
        transformer_layers_per_block=_one(depths),
        attention_head_dim=_one(tuple(heads.number or each // (heads.width or each) for each in channels)),
        use_linear_projection=linear,
        num_class_embeds=stored.axis("label_emb.weight", 0) if "label_emb.weight" in stored else None,
    )


def _one(values: tuple[int, ...]) -> Any:
    """A tuple, or the number that is in each place of it."""
    return values[0] if len(set(values)) == 1 else values


class VAENames(NamedTuple):
    """What the parts of a VAE are called, from which its config is inferred."""

    level: str
    block: str
    attention: str


ORIGINAL_NAMES = VAENames("encoder.down.{}.", "block.{}.", "decoder.mid.attn_1.")
DIFFUSERS_NAMES = VAENames("encoder.down_blocks.{}.", "resnets.{}.", "decoder.mid_block.attentions.0.")


def infer_vae(stored: Shapes, called: VAENames = ORIGINAL_NAMES) -> VAEConfig:
    """The config of a VAE, with the scaling factor of Stable Diffusion 1 and 2.

    Args:
      stored: what lies under `first_stage_model.`.
      called: by what names.

    Raises:
      CheckpointError: if names are missing.
      ConfigError: if there can be no such network.
    """
    levels = stored.count(called.level)
    last = called.block.format(0) + "conv2.weight"
    return VAEConfig(
        in_channels=stored.axis("encoder.conv_in.weight", 1),
        out_channels=stored.axis("decoder.conv_out.weight", 0),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(stored.axis(called.level.format(level) + last, 0) for level in range(levels)),
        layers_per_block=stored.count(called.level.format(0) + called.block),
        latent_channels=stored.axis("decoder.conv_in.weight", 1),
        norm_num_groups=_GROUPS,
        use_quant_conv="quant_conv.weight" in stored,
        use_post_quant_conv="post_quant_conv.weight" in stored,
        mid_block_add_attention=stored.has(called.attention),
    )


def infer_clip(stored: Shapes) -> TextEncoderConfig:
    """The config of CLIP's text encoder (under `cond_stage_model.transformer.text_model.`)."""
    tokens, width = (stored.axis("embeddings.token_embedding.weight", axis) for axis in (0, 1))
    return TextEncoderConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=stored.axis("encoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers=stored.count("encoder.layers.{}."),
        num_attention_heads=max(1, width // _TEXT_HEAD),
        max_position_embeddings=stored.axis("embeddings.position_embedding.weight", 0),
        hidden_act="quick_gelu",
    )


def infer_open_clip(stored: Shapes, penultimate: bool = True) -> TextEncoderConfig:
    """The config of OpenCLIP's text tower (under `cond_stage_model.model.`), up to the layer before the last."""
    tokens, width = (stored.axis("token_embedding.weight", axis) for axis in (0, 1))
    layers = stored.count("transformer.resblocks.{}.")
    model = by_token_width(width)
    # Files written from a diffusers folder have no more than those that are used.
    if penultimate and not (model and layers == model.text_layers):
        layers -= 1
    return TextEncoderConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=stored.axis("transformer.resblocks.0.mlp.c_fc.weight", 0),
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // _TEXT_HEAD),
        max_position_embeddings=stored.axis("positional_embedding", 0),
        hidden_act="gelu",
    )
