"""Trains a ControlNet for the embedded model: it draws what has the edges of a picture.

    python -m sdjax.training.control [--font FILE] [--state DIR] [--out DIR] [STAGE ...]

The stages: `scenes` encodes scenes and finds their edges, `train` trains the network (half an hour on two cores; it
goes on from what DIR holds), `export` writes the folder that `controlnets` names. Half of the captions are left out, so
that the network can't leave to them what is to be seen.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

import sdjax
from sdjax.checkpoints import names
from sdjax.checkpoints.tensors import write_params
from sdjax.images.preprocess import canny
from sdjax.models.controlnet import ControlNet, ControlNetConfig
from sdjax.training import scenes, state
from sdjax.training.emoji import BATCH, FONT, scene_batches
from sdjax.training.latent_diffusion import diffusion_loss
from sdjax.training.stages import parse_stages

SCENES = 12_000
RECIPE = state.Recipe(steps=2400, learning_rate=6e-4, warmup=100, average=0.995)
# Of the captions, how many are left out.
WITHOUT_CAPTION = 0.5
# Channels of the layers that look at the control picture; each after the first halves its sides.
CHANNELS = (16, 32, 64, 96)
# Seeds of its scenes, of its first numbers and of its training, as no other training has them.
_SCENE_SEED, _INIT_SEED, _NOISE_SEED = 50, 51, 52
FILE = "control.msgpack"
WEIGHTS = "diffusion_pytorch_model.safetensors"


class EdgeSet(NamedTuple):
    """Scenes in memory: latents of unit variance, their edges, and their captions' token ids."""

    latents: Float[np.ndarray, "n h w c"]
    edges: UInt8[np.ndarray, "n y x"]
    ids: Int[np.ndarray, "n t"]


def config(model: sdjax.Model) -> ControlNetConfig:
    """The network's sizes."""
    return ControlNetConfig(model.unet.config, conditioning_embedding_out_channels=CHANNELS)


def encode_scenes(model: sdjax.Model, folder: Path, font: Path, count: int = SCENES) -> None:
    """Writes `edges.npz`."""
    size = 100
    vae = {"params": model.params["vae"]}

    @jax.jit
    def encode(pixels: Array) -> Array:
        return model.vae.apply(vae, pixels.astype(jnp.float32) / 127.5 - 1, method="encode").mean

    latents, edges, captions = [], [], []
    source = scene_batches(_SCENE_SEED, scenes.sprites(font), size, 0)
    for _ in tqdm(range(count // size), desc="scenes"):
        pixels, texts = next(source)
        latents.append(np.asarray(encode(pixels)) * np.float32(model.vae.config.scaling_factor))
        edges.append(np.stack([canny(each)[..., 0] for each in pixels]))
        captions.extend(texts)
    ids = np.array([model.tokenizer(text).ids for text in captions], np.int16)
    written = folder / "edges.writing.npz"
    np.savez(written, latents=np.concatenate(latents), edges=np.concatenate(edges), ids=ids)
    written.replace(folder / "edges.npz")


def load_scenes(folder: Path) -> EdgeSet:
    """What `encode_scenes` wrote."""
    with np.load(folder / "edges.npz") as stored:
        return EdgeSet(stored["latents"], stored["edges"], stored["ids"])


def beginning(model: sdjax.Model) -> state.Params:
    """The parameters before training: the UNet's way down, and layers that give nothing yet."""
    network = ControlNet(config(model))
    cfg, factor = network.config, network.config.factor
    width = model.unet.config.per_level("cross_attention_dim")[0]
    picture, sample = jnp.zeros((1, factor, factor, 3)), jnp.zeros((1, 1, 1, cfg.unet.in_channels))
    key, context = jax.random.key(_INIT_SEED), jnp.zeros((1, 1, width))
    params = network.init(key, picture, sample, jnp.zeros(1), context, method="everything")["params"]
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


def batches(
    data: EdgeSet, empty: Int[np.ndarray, " t"], size: int, first: int
) -> Iterator[tuple[Float[np.ndarray, "b h w c"], UInt8[np.ndarray, "b y x"], Int[np.ndarray, "b t"]]]:
    """Endless batches from that of step `first` on."""
    step = first
    while True:
        rng = np.random.default_rng([_NOISE_SEED, step])
        rows = rng.integers(len(data.latents), size=size)
        ids = np.where(rng.random(size)[:, None] < WITHOUT_CAPTION, empty, data.ids[rows])
        yield data.latents[rows], data.edges[rows], ids.astype(np.int32)
        step += 1


def train(
    model: sdjax.Model, folder: Path, data: EdgeSet, recipe: state.Recipe = RECIPE, batch: int = BATCH
) -> state.Params:
    """Trains the network to its last step; gives its averaged parameters."""
    network = ControlNet(config(model))
    frozen = state.on_devices(
        {name: jax.tree.map(jnp.asarray, model.params[name]) for name in ("unet", "text_encoder")}, PartitionSpec()
    )

    def loss(params: state.Params, batch: tuple[Array, ...], key: Array) -> tuple[Array, dict[str, Array]]:
        latents, edges, ids = batch
        context = model.text_encoder.apply({"params": frozen["text_encoder"]}, ids).last_hidden_state
        picture = jnp.repeat(edges[..., None].astype(jnp.float32) / 255, 3, axis=-1)

        def predict(noisy: Array, timesteps: Array) -> Array:
            residuals = network.apply({"params": params}, picture, noisy, timesteps, context, method="everything")
            unet = {"params": frozen["unet"]}
            return model.unet.apply(unet, noisy, timesteps, context, None, None, residuals)

        return diffusion_loss(predict, model.scheduler, latents, key)

    init, update = state.make_update(loss, recipe, seed=_NOISE_SEED)
    empty = np.array(model.tokenizer("").ids)
    ended = state.run(
        update,
        state.restore(folder / FILE, init(beginning(model))),
        lambda first: batches(data, empty, batch, first),
        steps=recipe.steps,
        path=folder / FILE,
        title="control",
        save_every=300,
    )
    return jax.device_get(ended.average)


def export(model: sdjax.Model, folder: Path, target: Path) -> None:
    """Writes what the run in `folder` has reached as diffusers does, in float16."""
    params = flax.serialization.msgpack_restore((folder / FILE).read_bytes())["average"]
    write(target, config(model), params, jnp.float16)


def write(target: Path, cfg: ControlNetConfig, params: state.Params, dtype: jnp.dtype) -> None:
    """Writes a ControlNet's folder."""
    unet = dataclasses.asdict(cfg.unet)
    own = {key: value for key, value in dataclasses.asdict(cfg).items() if key != "unet"}
    said = {key: value for key, value in {**unet, **own}.items() if key not in ("out_channels", "up_block_types")}
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"_class_name": "ControlNetModel", **said}, indent=2, sort_keys=True)
    (target / "config.json").write_text(text + "\n", "utf-8")
    write_params(params, names.CONTROLNET, target / WEIGHTS, dtype)


STAGES = ("scenes", "train", "export")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf with bitmaps")
    parser.add_argument("--out", type=Path, default=Path("sdjax/assets/controlnets/emoji-canny"))
    options, stages = parse_stages(parser, STAGES)
    model = sdjax.load("emoji")
    if "scenes" in stages:
        encode_scenes(model, options.state, options.font)
    if "train" in stages:
        train(model, options.state, load_scenes(options.state))
    if "export" in stages:
        export(model, options.state, options.out)


if __name__ == "__main__":
    main()
