"""Trains a ControlNet for the embedded model: it draws what has the edges of an image.

    python -m sdjax.training.control [--font FILE] [--state DIR] [--out DIR] [STAGE ...]

The stages: `scenes` encodes scenes and finds their edges, `train` trains the network (half an hour on two cores; it
goes on from what DIR holds), `export` writes the folder that `controlnets` names.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

import sdjax
from sdjax.checkpoints.controlnet_file import write_controlnet
from sdjax.images.preprocessors import canny
from sdjax.models.controlnet import ControlNet, ControlNetConfig
from sdjax.training import state
from sdjax.training.conditions import SceneSet, encode_scenes, load_scenes, trained
from sdjax.training.emoji import BATCH, FONT
from sdjax.training.latent_diffusion import diffusion_loss
from sdjax.training.stages import parse_stages

RECIPE = state.Recipe(steps=2500, learning_rate=8e-4, warmup=100, average=0.995)
# Channels of the layers that look at the control image; each after the first halves its sides.
CHANNELS = (16, 32, 64, 96)
# Seeds of its scenes, of its first numbers and of its training, as no other training has them.
_SCENE_SEED, _INIT_SEED, _NOISE_SEED = 50, 51, 52
FILE = "control.msgpack"


def config(model: sdjax.Model) -> ControlNetConfig:
    """The network's sizes."""
    return ControlNetConfig(model.unet.config, conditioning_embedding_out_channels=CHANNELS)


def beginning(model: sdjax.Model) -> state.Params:
    """The parameters before training: the UNet's way down, and layers that give nothing yet."""
    network = ControlNet(config(model))
    cfg, factor = network.config, network.config.factor
    width = model.unet.config.per_level("cross_attention_dim")[0]
    control_image, sample = jnp.zeros((1, factor, factor, 3)), jnp.zeros((1, 1, 1, cfg.unet.in_channels))
    key, context = jax.random.key(_INIT_SEED), jnp.zeros((1, 1, width))
    init = jax.jit(functools.partial(network.init, method="everything"))
    params = init(key, control_image, sample, jnp.zeros(1), context)["params"]
    own = {name: tree for name, tree in params.items() if name not in model.params["unet"]}
    for name, tree in own.items():
        if name != "controlnet_cond_embedding":
            own[name] = jax.tree.map(jnp.zeros_like, tree)
    silent = jax.tree.map(jnp.zeros_like, own["controlnet_cond_embedding"]["conv_out"])
    own["controlnet_cond_embedding"] = {**own["controlnet_cond_embedding"], "conv_out": silent}
    return {
        **jax.tree.map(jnp.asarray, {name: model.params["unet"][name] for name in params if name not in own}),
        **own,
    }


def train(
    model: sdjax.Model, folder: Path, data: SceneSet, recipe: state.Recipe = RECIPE, batch: int = BATCH
) -> state.Params:
    """Trains the network to its last step; gives its averaged parameters."""
    network, [text_network] = ControlNet(config(model)), model.family.text_networks
    frozen = state.on_devices(
        {name: jax.tree.map(jnp.asarray, model.params[name]) for name in ("unet", text_network)}, PartitionSpec()
    )

    def loss(params: state.Params, batch: tuple[Array, ...], key: Array) -> tuple[Array, dict[str, Array]]:
        latents, edges, ids = batch
        context = model.networks[text_network].apply({"params": frozen[text_network]}, ids).last_hidden_state
        control_image = jnp.repeat(edges[..., None].astype(jnp.float32) / 255, 3, axis=-1)

        def predict(noisy: Array, timesteps: Array) -> Array:
            residuals = network.apply({"params": params}, control_image, noisy, timesteps, context, method="everything")
            unet = {"params": frozen["unet"]}
            return model.unet.apply(unet, noisy, timesteps, context, None, None, residuals)

        return diffusion_loss(predict, model.scheduler, latents, key)

    return trained(loss, beginning(model), data, model, recipe, batch=batch, seed=_NOISE_SEED, path=folder / FILE)


def export(model: sdjax.Model, folder: Path, target: Path) -> None:
    """Writes what the run in `folder` has reached as diffusers does, in float16."""
    write_controlnet(target, config(model), state.averaged(folder / FILE), jnp.float16)


STAGES = ("scenes", "train", "export")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf with bitmaps")
    parser.add_argument("--out", type=Path, default=Path("sdjax/assets/emoji/controlnets/canny"))
    options, stages = parse_stages(parser, STAGES)
    model = sdjax.load("emoji")
    file = options.state / "edges.npz"
    if "scenes" in stages:
        encode_scenes(model, file, options.font, _SCENE_SEED, lambda pixels, _: canny(pixels)[..., 0])
    if "train" in stages:
        train(model, options.state, load_scenes(file))
    if "export" in stages:
        export(model, options.state, options.out)


if __name__ == "__main__":
    main()
