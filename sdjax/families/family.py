"""What a kind of model is: the contract that each file of this folder fills in."""

import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from sdjax.diffusion.tableau import Table
from sdjax.families.network import Network
from sdjax.models import TextEncoderConfig

# The names of the network that denoises, and of that between images and latents, which every family has.
UNET, VAE = "unet", "vae"

# The configs of a model's networks, by their names.
Configs = Mapping[str, Any]


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

    ids: above those of the vocabulary, rows of `vectors` (`sdjax.text.prompt_tokenizer.FIRST_VECTOR` on).
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

    latents: scaled as the UNet expects them (diffusers' `scale_model_input`), extra channels appended.
    class_labels: None if the UNet has none.
    """

    latents: Float[Array, "q h w c"]
    timesteps: Float[Array, " q"]
    conditioning: Conditioning
    class_labels: Int[Array, " q"] | None


class Pipeline(NamedTuple):
    """A pipeline of diffusers.

    name: of its class, as `model_index.json` has it.
    scheduler: fields of the scheduler's config that it sets, whatever the file says.
    clips: the default of the scheduler's `clip_sample` in this pipeline.
    """

    name: str
    scheduler: Mapping[str, Any] = types.MappingProxyType({})
    clips: bool = True


class FolderLayout(NamedTuple):
    """How the diffusers folders of a family look, besides its networks, each in a folder of its name.

    pipelines: that read such folders; the first where several do.
    unused_parts: parts that may be there and have no say in images.
    extra_folders: other components whose config files affect the image; `low_res_scheduler` is the schedule of the
      noise that is put on the images that condition the UNet.
    overrides: by network, values of config fields that override the file.
    model_index: (configs) -> what `model_index.json` says where such a folder is written, besides its parts; None is
      the first pipeline's name.
    """

    pipelines: tuple[Pipeline, ...]
    unused_parts: frozenset[str] = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
    extra_folders: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({})
    model_index: Callable[[Configs], Mapping[str, Any]] | None = None

    def pipeline(self, class_name: object) -> Pipeline | None:
        """The pipeline of a class's name; None if there is none."""
        return next((pipeline for pipeline in self.pipelines if pipeline.name == class_name), None)


class Family(NamedTuple):
    """One kind of model.

    name: for people.
    networks: by name; among them "unet" and "vae".
    text_networks: which of them read text; prompts and embeddings are made of the tokens of the first.
    encode_text: (networks, tokens) -> states; pure.
    predict: (networks, inputs, residuals of ControlNets or None) -> the UNet's output, of the latents' channels; pure.
    folder: how its folders look.
    mismatch: (configs) -> why such networks make no model of this kind, for people; None if they do.
    is_of: (configs) -> whether it is this family, of several that share a pipeline.
    describe: (configs, prediction type) -> what a model is, for people; None is the family's name.
    table: (table of a sampler) -> the table with its timesteps replaced by those that are passed to the UNet.
    conditioned_on: what its UNet sees beside the latents of every image: "image", noised by a level that it is told as
      class label (the x4 upscaler); "latents", of half the size (the x2 upscaler); None.
    upscales: how many times as large along each side an image becomes.
    prediction_type: what `predict` gives; None: as the scheduler's config says.
    """

    name: str
    networks: Mapping[str, Network]
    text_networks: tuple[str, ...]
    encode_text: Callable[[Networks, Tokens], TextStates]
    predict: Callable[[Networks, UNetInputs, Any], Float[Array, "q h w c"]]
    folder: FolderLayout
    mismatch: Callable[[Configs], str | None] = lambda configs: None
    is_of: Callable[[Configs], bool] = lambda configs: True
    describe: Callable[[Configs, str], str] | None = None
    table: Callable[[Table], Table] = lambda table: table
    conditioned_on: str | None = None
    upscales: int = 1
    prediction_type: str | None = None

    @property
    def adapted_networks(self) -> tuple[str, ...]:
        """The networks that LoRAs change: all but the VAE."""
        return (UNET, *self.text_networks)

    @property
    def is_upscaler(self) -> bool:
        """Whether it makes images or latents of smaller ones, and nothing of text alone."""
        return self.conditioned_on is not None

    def modules(self, configs: Configs) -> dict[str, nn.Module]:
        """The networks of a model, of their configs."""
        return {name: network.module(configs[name]) for name, network in self.networks.items()}

    def text_config(self, configs: Configs) -> TextEncoderConfig:
        """The config of the text encoder whose tokens prompts and embeddings are made of."""
        config: TextEncoderConfig = configs[self.text_networks[0]]
        return config

    def text_layers(self, configs: Configs) -> int:
        """How many layers the shallowest of its text encoders has."""
        return min(int(configs[name].num_hidden_layers) for name in self.text_networks)

    def variant_name(self, configs: Configs, prediction_type: str) -> str:
        """What a model is, for people to read."""
        return self.describe(configs, prediction_type) if self.describe else self.name


def first_mismatch(values: Mapping[str, tuple[Any, Any]], purpose: str) -> str | None:
    """The first value, by its name, that is not as expected: (found, expected); None if there is none.

    Args:
      purpose: for what it is expected, as the message ends.
    """
    wrong = ((name, *pair) for name, pair in values.items() if pair[0] != pair[1])
    return next((f"{name} is {found}, expected {expected} {purpose}" for name, found, expected in wrong), None)
