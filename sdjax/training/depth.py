"""Trains what sees depth on the embedded model's scenes: an estimator of depth, and a UNet that draws by depth maps.

    python -m sdjax.training.depth [--font FILE] [--state DIR] [--out DIR] [--model DIR] [STAGE ...]

The stages: `scenes` encodes scenes and draws their reliefs, `estimator` trains a small DPT to tell the relief of a
image, `unet` trains the embedded UNet further with one more channel, the depth (each half an hour on two cores or
less; they go on from what DIR holds), `export` writes the estimator's folder, and a whole model that takes depth.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt8

import sdjax
from sdjax.assets import bundled
from sdjax.checkpoints.depth_file import DepthProcessor, write_depth
from sdjax.checkpoints.diffusers_folder import write_folder
from sdjax.library.depth import normalised
from sdjax.models import UNet, UNetConfig
from sdjax.models.depth import DepthConfig, DepthEstimator
from sdjax.training import scenes, state
from sdjax.training.conditions import SceneSet, encode_scenes, load_scenes, trained
from sdjax.training.emoji import BATCH, FONT, SCHEDULER_CLASS
from sdjax.training.latent_diffusion import diffusion_loss
from sdjax.training.stages import parse_stages

ESTIMATOR = DepthConfig(
    hidden_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=384,
    image_size=scenes.SIZE,
    patch_size=8,
    backbone_out_indices=(0, 1, 2, 3),
    neck_hidden_sizes=(32, 48, 64, 96),
    fusion_hidden_size=32,
)
PROCESSOR = DepthProcessor(size=(scenes.SIZE, scenes.SIZE))
ESTIMATOR_RECIPE = state.Recipe(steps=1000, learning_rate=1e-3, warmup=100, average=0.995)
ESTIMATOR_BATCH = 16
UNET_RECIPE = state.Recipe(steps=1200, learning_rate=5e-4, warmup=100, average=0.995)
ESTIMATOR_FILE, UNET_FILE, SCENES_FILE = "depth_estimator.msgpack", "depth_unet.msgpack", "depth.npz"
# Seeds of its scenes, of its first numbers and of its training, as no other training has them.
_SCENE_SEED, _INIT_SEED, _ESTIMATOR_SEED, _UNET_SEED = 60, 61, 62, 63


def estimator_loss(
    params: state.Params, pixels: UInt8[Array, "b y x 3"], relief: UInt8[Array, "b y x"]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """How far the estimator is from the relief, of which 2 is nearest and 1 farthest: its values, and their slopes.

    No place is at 0: there the ReLU ends with which the network ends, and nothing is learned below.
    """
    found = DepthEstimator(ESTIMATOR).apply({"params": params}, pixels.astype(jnp.float32) / 127.5 - 1)
    side = found.shape[1] // relief.shape[1]
    batch, height, width = relief.shape
    found = found.reshape(batch, height, side, width, side).mean(axis=(2, 4))
    error = found - 1 - relief.astype(jnp.float32) / 255
    slopes = (jnp.diff(error, axis=1) ** 2).mean() + (jnp.diff(error, axis=2) ** 2).mean()
    return (error**2).mean() + slopes, {"error": jnp.abs(error).mean()}


def train_estimator(
    folder: Path, data: SceneSet, recipe: state.Recipe = ESTIMATOR_RECIPE, batch: int = ESTIMATOR_BATCH
) -> state.Params:
    """Trains the estimator to its last step; gives its averaged parameters."""
    pixels = jnp.zeros((1, scenes.SIZE, scenes.SIZE, 3))
    params = jax.jit(DepthEstimator(ESTIMATOR).init)(jax.random.key(_INIT_SEED), pixels)["params"]
    params["head"]["conv3"]["bias"] = jnp.full_like(params["head"]["conv3"]["bias"], 1.5)

    def drawn(first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        step = first
        while True:
            rows = np.random.default_rng([_ESTIMATOR_SEED, step]).integers(len(data.pixels), size=batch)
            yield data.pixels[rows], data.conditions[rows]
            step += 1

    init, update = state.make_update(lambda p, b, _: estimator_loss(p, *b), recipe, seed=_ESTIMATOR_SEED)
    ended = state.run(
        update,
        state.restore(folder / ESTIMATOR_FILE, init(params)),
        drawn,
        steps=recipe.steps,
        path=folder / ESTIMATOR_FILE,
        title="depth estimator",
        save_every=300,
    )
    return jax.device_get(ended.average)


def config(model: sdjax.Model) -> UNetConfig:
    """The sizes of the UNet that sees depth."""
    return dataclasses.replace(model.unet.config, in_channels=model.unet.config.in_channels + 1)


def beginning(model: sdjax.Model) -> state.Params:
    """The UNet's parameters before training: depth says nothing yet."""
    params = jax.tree.map(jnp.asarray, model.params["unet"])
    kernel = params["conv_in"]["kernel"]
    kernel = jnp.concatenate([kernel, jnp.zeros_like(kernel[:, :, :1])], axis=2)
    return {**params, "conv_in": {**params["conv_in"], "kernel": kernel}}


def train_unet(
    model: sdjax.Model, folder: Path, data: SceneSet, recipe: state.Recipe = UNET_RECIPE, batch: int = BATCH
) -> state.Params:
    """Trains the UNet to its last step; gives its averaged parameters."""
    unet, [text_network] = UNet(config(model)), model.family.text_networks
    text = state.on_devices(jax.tree.map(jnp.asarray, model.params[text_network]), PartitionSpec())
    side = data.latents.shape[1]
    # What the pipeline makes of a depth map.
    data = data._replace(conditions=normalised(data.conditions.astype(np.float32), side, side)[..., 0])

    def loss(params: state.Params, batch: tuple[Array, ...], key: Array) -> tuple[Array, dict[str, Array]]:
        latents, depth, ids = batch
        context = model.networks[text_network].apply({"params": text}, ids).last_hidden_state

        def predict(noisy: Array, timesteps: Array) -> Array:
            channels = jnp.concatenate([noisy, depth[..., None]], axis=-1)
            return unet.apply({"params": params}, channels, timesteps, context)

        return diffusion_loss(predict, model.scheduler, latents, key)

    return trained(loss, beginning(model), data, model, recipe, batch=batch, seed=_UNET_SEED, path=folder / UNET_FILE)


def export_estimator(folder: Path, target: Path) -> None:
    """Writes the estimator as transformers does, in float16."""
    write_depth(target, ESTIMATOR, PROCESSOR, state.averaged(folder / ESTIMATOR_FILE), jnp.float16)


def write_model(model: sdjax.Model, params: state.Params, target: Path) -> None:
    """Writes the embedded model, with parameters of a UNet that sees depth, as a diffusers folder in float16."""
    source = bundled("emoji")
    assert source is not None, "the embedded model is bundled"
    write_folder(
        target,
        model.family,
        {**model.configs, "unet": config(model)},
        scheduler=model.scheduler,
        scheduler_class=SCHEDULER_CLASS,
        special_tokens={},
        params={**model.params, "unet": params},
        dtype=jnp.float16,
    )
    # The special tokens' numbers are in it.
    for network in model.family.text_networks:
        shutil.copy(source / network / "config.json", target / network / "config.json")
    shutil.copytree(source / "tokenizer", target / "tokenizer", dirs_exist_ok=True)


STAGES = ("scenes", "estimator", "unet", "export")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf with bitmaps")
    parser.add_argument("--out", type=Path, default=Path("sdjax/assets/emoji/depth_estimator"))
    parser.add_argument("--model", type=Path, default=Path("build/emoji-depth"), help="the model that takes depth")
    options, stages = parse_stages(parser, STAGES)
    model, file = sdjax.load("emoji"), options.state / SCENES_FILE
    if "scenes" in stages:
        drawn = scenes.sprites(options.font)
        encode_scenes(model, file, options.font, _SCENE_SEED, lambda _, scene: scenes.relief(scene, drawn))
    if "estimator" in stages:
        train_estimator(options.state, load_scenes(file))
    if "unet" in stages:
        train_unet(model, options.state, load_scenes(file))
    if "export" in stages:
        export_estimator(options.state, options.out)
        write_model(model, state.averaged(options.state / UNET_FILE), options.model)


if __name__ == "__main__":
    main()
