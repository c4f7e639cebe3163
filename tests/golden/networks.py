"""The comparisons of networks and their blocks: weights, inputs, and what sdjax gives for them.

The same cases are compared with recorded references (`tests/models`) and live (`tests/parity`). Weights and inputs
come from numpy's frozen `RandomState`, so only results are stored. Images are (batch, height, width, channels).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax.checkpoints.tensors import Params
from sdjax.families.network import NetworkConfig
from sdjax.models import VAE, TextEncoder, TextEncoderConfig, UNet, UNetConfig, VAEConfig
from sdjax.models.attention import Attention, SpatialTransformer
from sdjax.models.resnet import Downsample, ResnetBlock, Upsample
from tests import toys

Arrays = dict[str, np.ndarray]

RECORDED = Path(__file__).parent / "networks.npz"
EMOJI_RECORDED = Path(__file__).parent / "networks_emoji.npz"
# The largest relative error in float32: the norm of the difference over the norm of the reference. A recording is held
# to it as well when it is compared with what its library gives now: torch adds up in other orders on other processors.
TOLERANCE = 1e-5


def relative_error(found: np.ndarray, reference: np.ndarray) -> float:
    """The norm of the difference over the norm of the reference."""
    assert found.shape == reference.shape, f"{found.shape} is not the reference's {reference.shape}"
    difference = found.astype(np.float64) - reference.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(reference.astype(np.float64)))


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


class Network(NamedTuple):
    """A network with weights; `size` is that of its latents."""

    config: NetworkConfig
    params: Callable[[], Params]
    size: tuple[int, int] = (8, 8)


def _random(config: NetworkConfig, seed: int, size: tuple[int, int] = (8, 8)) -> Network:
    return Network(config, lambda: toys.random_params(toys.param_shapes(config), np.random.RandomState(seed)), size)


_ODD = dataclasses.replace(
    toys.SD1.unet,
    in_channels=9,
    layers_per_block=(1, 2, 1),
    transformer_layers_per_block=(2, 1, 3),
    class_embed_type="timestep",
)
_LABELLED = dataclasses.replace(
    toys.SD2.unet, in_channels=5, only_cross_attention=(True, False, True), num_class_embeds=10
)
_PROJECTED = dataclasses.replace(
    toys.SD2.unet,
    class_embed_type="projection",
    projection_class_embeddings_input_dim=12,
    flip_sin_to_cos=False,
    freq_shift=1,
)

NETWORKS: dict[str, Network] = {
    "sd1_text_encoder": _random(toys.SD1.text_encoder, 11),
    "sd2_text_encoder": _random(toys.SD2.text_encoder, 12),
    "sd1_vae": _random(toys.SD1.vae, 13),
    "sd2_vae": _random(toys.SD2.vae, 14),
    "sd1_unet": _random(toys.SD1.unet, 15),
    "sd2_unet": _random(toys.SD2.unet, 16),
    "unet_of_9_channels_odd_size_deep_transformers_timestep_labels": _random(_ODD, 17, (9, 7)),
    "unet_of_5_channels_only_cross_attention_class_labels": _random(_LABELLED, 18),
    "unet_of_projected_labels": _random(_PROJECTED, 19),
}


def emoji_networks() -> dict[str, Network]:
    """The embedded model's networks."""
    model = sdjax.load("emoji")
    configs = {
        "text_encoder": model.networks["text_encoder"].config,
        "vae": model.vae.config,
        "unet": model.unet.config,
    }
    return {
        f"emoji_{part}": Network(config, functools.partial(model.params.__getitem__, part))
        for part, config in configs.items()
    }


def class_labels(config: UNetConfig) -> np.ndarray | None:
    """Labels for two samples, of the kind that the network takes."""
    if config.class_embed_type == "timestep":
        return np.array([3.0, 250.0], np.float32)
    if config.class_embed_type == "projection":
        return _normal(5, 2, config.projection_class_embeddings_input_dim or 0)
    return np.array([0, 7], np.int32) if config.num_class_embeds else None


def inputs(network: Network) -> Arrays:
    """What a network is asked."""
    config, (height, width) = network.config, network.size
    if isinstance(config, TextEncoderConfig):
        tokens = np.random.RandomState(1).randint(0, config.vocab_size, (1, config.max_position_embeddings))
        return {"input_ids": tokens.astype(np.int32)}
    if isinstance(config, VAEConfig):
        pixels = _normal(2, 1, height * config.factor, width * config.factor, config.in_channels)
        return {"pixels": np.clip(pixels / 2, -1, 1), "latents": _normal(3, 1, height, width, config.latent_channels)}
    asked = {
        "sample": _normal(3, 2, height, width, config.in_channels),
        "timesteps": np.array([981.0, 16.0], np.float32),
        "context": _normal(4, 2, 7, config.per_level("cross_attention_dim")[0]),
    }
    labels = class_labels(config)
    return asked if labels is None else {**asked, "class_labels": labels}


@functools.cache
def _compiled(module: nn.Module, method: str | None) -> Callable[..., Any]:
    return jax.jit(functools.partial(module.apply, method=method))


def outputs(network: Network) -> Arrays:
    """What sdjax gives, by name."""
    config, asked, variables = network.config, inputs(network), {"params": network.params()}
    with jax.default_matmul_precision("highest"):
        if isinstance(config, TextEncoderConfig):
            encoding = _compiled(TextEncoder(config), None)(variables, asked["input_ids"])
            states = {f"hidden_states_{index}": state for index, state in enumerate(encoding.hidden_states)}
            given = {"last_hidden_state": encoding.last_hidden_state, **states}
        elif isinstance(config, VAEConfig):
            posterior = _compiled(VAE(config), "encode")(variables, asked["pixels"])
            decoded = _compiled(VAE(config), "decode")(variables, asked["latents"])
            given = {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": decoded}
        else:
            given = {"prediction": _compiled(UNet(config), None)(variables, *asked.values())}
    return {name: np.asarray(array) for name, array in given.items()}


class Block(NamedTuple):
    """A part of a network, and the arguments it is called with: arrays, or plain numbers."""

    module: nn.Module
    arguments: tuple[Any, ...]


_FEATURES, _TIME, _CONTEXT, _TOKENS = (
    _normal(6, 2, 6, 4, 16),
    _normal(7, 2, 24),
    _normal(8, 2, 5, 12),
    _normal(9, 2, 9, 16),
)

BLOCKS: dict[str, Block] = {
    "resnet": Block(ResnetBlock(16, 8, 1e-5), (_FEATURES, _TIME)),
    "resnet_with_shortcut": Block(ResnetBlock(32, 4, 1e-6), (_FEATURES,)),
    "self_attention": Block(Attention(heads=2, qkv_bias=True), (_TOKENS,)),
    "cross_attention": Block(Attention(heads=4), (_TOKENS, _CONTEXT)),
    "transformer_of_convolutions": Block(SpatialTransformer(2, 1, 8, False), (_FEATURES, _CONTEXT)),
    "transformer_of_linear_layers": Block(SpatialTransformer(4, 2, 8, True), (_FEATURES, _CONTEXT)),
    "downsample_of_unet": Block(Downsample("both"), (_FEATURES,)),
    "downsample_of_unet_at_odd_size": Block(Downsample("both"), (_FEATURES[:, :5, :3],)),
    "downsample_of_vae": Block(Downsample("after"), (_FEATURES,)),
    "upsample": Block(Upsample(), (_FEATURES, 12, 8)),
    "upsample_to_odd_size": Block(Upsample(), (_FEATURES, 11, 7)),
}


def block_params(block: Block) -> Params:
    """Random weights."""
    arrays = [argument for argument in block.arguments if isinstance(argument, np.ndarray)]
    numbers = block.arguments[len(arrays) :]
    shapes = jax.eval_shape(lambda *given: block.module.init(jax.random.key(0), *given, *numbers), *arrays)
    return toys.random_params(shapes["params"], np.random.RandomState(20))


def block_output(block: Block) -> np.ndarray:
    """What sdjax gives."""
    with jax.default_matmul_precision("highest"):
        arguments = [jnp.asarray(given) if isinstance(given, np.ndarray) else given for given in block.arguments]
        return np.asarray(block.module.apply({"params": block_params(block)}, *arguments))


def stored(references: Mapping[str, np.ndarray], name: str) -> Arrays:
    """One case's arrays out of a file that holds those of all, as "case/output"."""
    found = {key.split("/")[1]: references[key] for key in references if key.split("/")[0] == name}
    assert found, f"there is no reference for {name}; record them anew: make golden"
    return found
