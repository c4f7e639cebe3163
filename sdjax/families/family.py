"""What a kind of model is: the contract that each file of this folder fills in."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from sdjax.diffusion.tableau import Table
from sdjax.models import TextEncoderConfig

# The name of the network that denoises, which every family has.
UNET = "unet"


class Networks(NamedTuple):
    """A model's networks with their parameters, by name, as a program applies them.

    modules: of flax; frozen, and so part of a program.
    params: trees of arrays, under the same names.
    adapted: in which context a network is applied; that of low-rank changes for each image, or of hypernetworks.
    """

    modules: Mapping[str, Any]
    params: Mapping[str, Any]
    adapted: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()

    def apply(self, name: str, *arguments: Any) -> Any:
        """What a network gives."""
        with self.adapted(name):
            return self.modules[name].apply({"params": self.params[name]}, *arguments)

    def config(self, name: str) -> Any:
        """The config of a network."""
        return self.modules[name].config


class Tokens(NamedTuple):
    """Token chunks of a batch as a text encoder reads them; q is images times chunks.

    ids: above those of the vocabulary, rows of `vectors` (`sdjax.text.words.FIRST_VECTOR` on).
    mask: which tokens may be attended to; None is all.
    clip_skip: of the encoder's last layers, how many are left out.
    vectors: of embeddings; None if no chunk has any.
    end: the id of the token that ends a text.
    """

    ids: Int[Array, "q n"]
    mask: Bool[Array, "q n"] | None
    clip_skip: Int[Array, " q"]
    vectors: Float[Array, "q r e"] | None
    end: int


class TextStates(NamedTuple):
    """What text encoders make of token chunks; `pooled` is a vector of each, None if the UNet takes none."""

    hidden: Float[Array, "q n e"]
    pooled: Float[Array, "q p"] | None


class Conditioning(NamedTuple):
    """What a UNet is given of texts: q is branches times images, or `b t` are images and their texts.

    context: what cross-attention attends to.
    mask: which of it; None is all.
    pooled: one vector of the whole text; None if the family has none.
    """

    context: Float[Array, "*q n e"]
    mask: Bool[Array, "*q n"] | None
    pooled: Float[Array, "*q p"] | None


class UNetInputs(NamedTuple):
    """What a UNet is given in one evaluation; q is branches times images, branches outside.

    latents: at the variance of training, with the channels that the UNet is given beside them.
    class_labels: None if the UNet has none.
    """

    latents: Float[Array, "q h w c"]
    timesteps: Float[Array, " q"]
    conditioning: Conditioning
    class_labels: Int[Array, " q"] | None


class Family(NamedTuple):
    """One kind of model.

    name: for people.
    networks: the modules by name; among them "unet" and "vae".
    text_networks: which of them read text.
    encode_text: (networks, tokens) -> states; pure.
    predict: (networks, inputs, residuals of ControlNets or None) -> the UNet's output, of the latents' channels; pure.
    table: a sampler's table with the times that the UNet is told.
    conditioned_on: what its UNet sees beside the latents of every image: "image", noised by a level that it is told as
      class label (the x4 upscaler); "latents", of half the size (the x2 upscaler); None.
    upscales: how many times as large along each side an image becomes.
    prediction_type: what `predict` gives, whatever the scheduler's config says; None is as that says.
    """

    name: str
    networks: Mapping[str, type[nn.Module]]
    text_networks: tuple[str, ...]
    encode_text: Callable[[Networks, Tokens], TextStates]
    predict: Callable[[Networks, UNetInputs, Any], Float[Array, "q h w c"]]
    table: Callable[[Table], Table] = lambda table: table
    conditioned_on: str | None = None
    upscales: int = 1
    prediction_type: str | None = None

    @property
    def adapted_networks(self) -> tuple[str, ...]:
        """The networks that LoRAs change: all but the VAE."""
        return (UNET, *self.text_networks)

    def modules(self, configs: Mapping[str, Any]) -> dict[str, nn.Module]:
        """The networks of a model, of their configs."""
        return {name: module(configs[name]) for name, module in self.networks.items()}

    def text_config(self, configs: Mapping[str, Any]) -> TextEncoderConfig:
        """The config of the text encoder whose tokens prompts and embeddings are made of."""
        config: TextEncoderConfig = configs[self.text_networks[0]]
        return config

    def text_layers(self, configs: Mapping[str, Any]) -> int:
        """How many layers the shallowest of its text encoders has."""
        return min(int(configs[name].num_hidden_layers) for name in self.text_networks)
