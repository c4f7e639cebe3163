"""What conditions are learned from: scenes' latents, and a condition of each scene.

Captions say the colour of the background, or nothing. Those that say what stands there leave nothing to be learned: the
embedded model's text encoder tells the UNet place by place what to draw.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from rich.progress import track

import sdjax
from sdjax.training import scenes, state

# Scenes, and how many are encoded at once.
SCENES, _AT_ONCE = 12_000, 100
_WITHOUT_CAPTION = 0.5


class SceneSet(NamedTuple):
    """Scenes in memory: pixels, latents of unit variance, conditions, and token ids of their colours."""

    pixels: UInt8[np.ndarray, "n y x 3"]
    latents: Float[np.ndarray, "n h w c"]
    conditions: UInt8[np.ndarray, "n y x"]
    ids: Int[np.ndarray, "n t"]


def encode_scenes(
    model: sdjax.Model,
    file: Path,
    font: Path,
    seed: int,
    condition_of: Callable[[UInt8[np.ndarray, "y x 3"], scenes.Scene], UInt8[np.ndarray, "y x"]],
    count: int = SCENES,
) -> None:
    """Writes the first scenes of a seed.

    Args:
      model: whose VAE and tokenizer are used.
      file: `.npz`, which `load_scenes` reads.
      font: of the emoji.
      seed: of the scenes.
      condition_of: gives a scene's condition, by its pixels or by itself.
      count: a multiple of 100.
    """
    vae = {"params": model.params["vae"]}

    @jax.jit
    def encode(pixels: Array) -> Array:
        return model.vae.apply(vae, pixels.astype(jnp.float32) / 127.5 - 1, method="encode").mean

    source = scenes.examples(seed, scenes.sprites(font))
    found: list[SceneSet] = []
    for _ in track(range(count // _AT_ONCE), "scenes"):
        rows = [next(source) for _ in range(_AT_ONCE)]
        pixels = np.stack([row[0] for row in rows])
        found.append(
            SceneSet(
                pixels,
                np.asarray(encode(pixels)) * np.float32(model.vae.config.scaling_factor),
                np.stack([condition_of(image, scene) for image, _, scene in rows]),
                np.array([model.tokenizer(f"on a {scene.color} background").ids for _, _, scene in rows], np.int16),
            )
        )
    written = file.with_suffix(".writing.npz")
    whole: dict[str, Any] = {
        name: np.concatenate(parts) for name, parts in zip(SceneSet._fields, zip(*found, strict=True), strict=True)
    }
    np.savez(written, **whole)
    written.replace(file)


def load_scenes(file: Path) -> SceneSet:
    """What `encode_scenes` wrote."""
    with np.load(file) as stored:
        return SceneSet(*(stored[name] for name in SceneSet._fields))


def batches(
    data: SceneSet, empty: Int[np.ndarray, " t"], size: int, seed: int, first: int
) -> Iterator[tuple[Float[np.ndarray, "b h w c"], np.ndarray, Int[np.ndarray, "b t"]]]:
    """Endless batches from that of step `first` on: latents, conditions, ids; half of them say no colour."""
    step = first
    while True:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(data.latents), size=size)
        ids = np.where(rng.random(size)[:, None] < _WITHOUT_CAPTION, empty, data.ids[rows])
        yield data.latents[rows], data.conditions[rows], ids.astype(np.int32)
        step += 1


def trained(
    loss: Callable[[state.Params, Any, Array], tuple[Array, dict[str, Array]]],
    params: state.Params,
    data: SceneSet,
    model: sdjax.Model,
    recipe: state.Recipe,
    *,
    batch: int,
    seed: int,
    path: Path,
) -> state.Params:
    """Trains parameters to the last step of a recipe on batches of scenes; gives the averaged ones.

    Args:
      loss: as `state.make_update` takes it, of batches as `batches` gives them.
      params: before the first step; a run that was saved goes on from where it was.
      data: the scenes.
      model: whose tokenizer is used.
      recipe: how long and how fast.
      batch: scenes in each.
      seed: of batches and noise.
      path: where the run is kept.
    """
    init, update = state.make_update(loss, recipe, seed=seed)
    empty = np.array(model.tokenizer("").ids)
    ended = state.run(
        update,
        state.restore(path, init(params)),
        lambda first: batches(data, empty, batch, seed, first),
        steps=recipe.steps,
        path=path,
        title=path.stem,
        save_every=300,
    )
    return jax.device_get(ended.average)
