"""Trains the classifier that can guide the embedded model, on that model's latents with noise.

    python -m sdjax.training.noise_classifier [--state DIR] [--out DIR] [STAGE ...]

The stages: `train` trains it (some minutes on one core; it goes on from what DIR holds, where the stage `latents` of
`sdjax.training.emoji` has to have left the latents), `measure` says how many held-out scenes it knows at each level of
noise, `export` writes the folder that `sdjax.load_classifier` reads.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sdjax.checkpoints.name_table import NameTable
from sdjax.checkpoints.tensors import write_params
from sdjax.diffusion.scheduler_config import SchedulerConfig, alphas_cumprod
from sdjax.library.classifier import CONFIG, LABELS, WEIGHTS
from sdjax.models.classifier import NoiseClassifier, NoiseClassifierConfig
from sdjax.training import scenes, state
from sdjax.training.emoji import SCHEDULER, SIDE, TRAIN_SEED, VAE_CONFIG, load_latents
from sdjax.training.latent_diffusion import LatentSet
from sdjax.training.stages import parse_stages

RECIPE = state.Recipe(steps=5000, learning_rate=2e-3, warmup=100, decay_from=0.4, average=0.998)
BATCH = 256
# The run in the folder of runs.
FILE = "noise_classifier.msgpack"
# Of the different scenes one in so many is held out.
HELD_OUT_ONE_IN = 40
# Where it is measured, of 1000 timesteps; and how often each held-out scene gets noise there.
TIMESTEPS = (0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
DRAWS = 4
# Seeds of its first numbers, of its training and of its measure, as no other training has them.
_INIT_SEED, _NOISE_SEED, _MEASURE_SEED = 40, 41, 42


class Rows(NamedTuple):
    """Some of the encoded scenes, and the one concept in each."""

    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]


def split_scenes(drawn: Sequence[scenes.Scene], one_in: int = HELD_OUT_ONE_IN) -> tuple[Rows, Rows]:
    """Scenes with one concept to train on, and others to measure with: no scene is on both sides, however often drawn.

    Args:
      drawn: the scenes in the order in which they are encoded.
      one_in: of so many different scenes one is held out.
    """
    single = [(row, scene) for row, scene in enumerate(drawn) if len(scene.concepts) == 1]
    held_out = set(list(dict.fromkeys(scene for _, scene in single))[::one_in])

    def rows(chosen: bool) -> Rows:
        pairs = [(row, scene.concepts[0]) for row, scene in single if (scene in held_out) == chosen]
        return Rows(np.array([row for row, _ in pairs]), np.array([label for _, label in pairs], np.int32))

    return rows(False), rows(True)


def encoded_scenes(count: int, concepts: int) -> tuple[scenes.Scene, ...]:
    """The scenes that the stage `latents` encodes, in its order."""
    return tuple(scenes.draw_scene(np.random.default_rng([TRAIN_SEED, index]), concepts) for index in range(count))


def noised(
    scheduler: SchedulerConfig,
    latents: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
    noise: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Latents with as much noise as the model sees at these timesteps; of unit variance, as they are themselves."""
    share = jnp.asarray(alphas_cumprod(scheduler), jnp.float32)[timesteps][:, None, None, None]
    return jnp.sqrt(share) * latents + jnp.sqrt(1 - share) * noise


def noise_classifier_loss(
    classifier: NoiseClassifier,
    scheduler: SchedulerConfig,
    params: state.Params,
    latents: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    key: Array,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Cross-entropy at a random timestep of each image, all equally often; reports also the share that is right.

    Half of the images are blends, for which the labels of both count by their shares (mixup: Zhang et al. 2017,
    arXiv:1710.09412). What a model draws without a prompt is a blend of much that it knows; a classifier which has seen
    whole scenes alone is soon sure of some label there, and its gradient vanishes before the image is one.
    """
    for_time, for_noise, for_share = jax.random.split(key, 3)
    count = len(labels)
    shares = jax.random.uniform(for_share, labels.shape)
    shares = jnp.where(jnp.arange(count) < count // 2, 1 - shares / 2, 1.0)  # at least half: its label comes first
    wide = shares[:, None, None, None]
    blended = wide * latents + (1 - wide) * latents[::-1]
    timesteps = jax.random.randint(for_time, labels.shape, 0, scheduler.num_train_timesteps)
    noisy = noised(scheduler, blended, timesteps, jax.random.normal(for_noise, latents.shape))
    logits = classifier.apply({"params": params}, noisy, timesteps.astype(jnp.float32))
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    first, second = (optax.softmax_cross_entropy_with_integer_labels(logits, each) for each in (labels, labels[::-1]))
    return (shares * first + (1 - shares) * second).mean(), {"right": right.mean()}


def batches(
    data: LatentSet, chosen: Rows, size: int, first: int
) -> Iterator[tuple[Float[np.ndarray, "b h w c"], Int[np.ndarray, " b"]]]:
    """Endless batches of (latents of unit variance, concepts) from that of step `first` on."""
    step = first
    while True:
        rng = np.random.default_rng([_NOISE_SEED, step])
        picked = rng.integers(len(chosen.rows), size=size)
        latents = data.sampled(rng, chosen.rows[picked]) * data.scale
        yield latents.astype(np.float32), chosen.labels[picked]
        step += 1


def accuracy_by_timestep(
    classifier: NoiseClassifier,
    scheduler: SchedulerConfig,
    params: state.Params,
    data: LatentSet,
    chosen: Rows,
    timesteps: Sequence[int] = TIMESTEPS,
    draws: int = DRAWS,
) -> list[float]:
    """The share of these scenes whose concept is the classifier's first choice, at each timestep."""

    @jax.jit
    def right(latents: Array, labels: Array, timestep: Array, key: Array) -> Array:
        noisy = noised(scheduler, latents, timestep, jax.random.normal(key, latents.shape))
        logits = classifier.apply({"params": params}, noisy, timestep.astype(jnp.float32))
        return (logits.argmax(-1) == labels).mean(dtype=jnp.float32)

    rng = np.random.default_rng(_MEASURE_SEED)
    shares = np.zeros((len(timesteps), draws))
    for draw in range(draws):
        latents = jnp.asarray(data.sampled(rng, chosen.rows) * data.scale, jnp.float32)
        for place, timestep in enumerate(timesteps):
            key = jax.random.fold_in(jax.random.key(_MEASURE_SEED), draw * len(timesteps) + place)
            everywhere = jnp.full(len(chosen.rows), timestep, jnp.int32)
            shares[place, draw] = right(latents, jnp.asarray(chosen.labels), everywhere, key)
    return shares.mean(axis=1).tolist()


def table(scheduler: SchedulerConfig, timesteps: Sequence[int], shares: Sequence[float]) -> str:
    """The accuracies as Markdown, with the noise's deviation beside that of the latents (sigma)."""
    signal = alphas_cumprod(scheduler)
    rows = [
        f"| {timestep} | {np.sqrt(1 / signal[timestep] - 1):.2f} | {100 * share:.1f} % |"
        for timestep, share in zip(timesteps, shares, strict=True)
    ]
    return "\n".join(["| timestep | sigma | concept recognised |", "|---:|---:|---:|", *rows])


def config(concepts: int) -> NoiseClassifierConfig:
    """The classifier's sizes."""
    return NoiseClassifierConfig(in_channels=VAE_CONFIG.latent_channels, labels=concepts, sample_size=SIDE)


def train(
    folder: Path,
    sizes: NoiseClassifierConfig,
    data: LatentSet,
    chosen: Rows,
    held_out: Rows,
    recipe: state.Recipe = RECIPE,
    batch: int = BATCH,
) -> state.Params:
    """Trains the classifier to its last step; prints how many held-out scenes it knows without noise and with some.

    Returns:
      Its averaged parameters.
    """
    classifier = NoiseClassifier(sizes)
    latents = jnp.zeros((1, *data.means.shape[1:]))
    params = classifier.init(jax.random.key(_INIT_SEED), latents, jnp.zeros(1))["params"]
    params = state.quiet_branches(params, ("linear_out",))

    def loss(params: state.Params, batch: tuple[Array, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        latents, labels = batch
        return noise_classifier_loss(classifier, SCHEDULER, params, latents, labels, key)

    init, update = state.make_update(loss, recipe, seed=_NOISE_SEED)

    def show(current: state.TrainState) -> None:
        average = jax.device_get(current.average)
        shares = accuracy_by_timestep(classifier, SCHEDULER, average, data, held_out, (0, 500), 1)
        text = " and ".join(f"{100 * share:.1f} % at timestep {at}" for at, share in zip((0, 500), shares, strict=True))
        print(f"step {int(current.step)}: {text} of {len(held_out.rows)} held-out scenes recognised")

    trained = state.run(
        update,
        state.restore(folder / FILE, init(params)),
        lambda first: batches(data, chosen, batch, first),
        steps=recipe.steps,
        path=folder / FILE,
        title="noise classifier",
        on_save=show,
    )
    return trained.average


def export(params: state.Params, sizes: NoiseClassifierConfig, labels: Sequence[str], target: Path) -> None:
    """Writes the folder that `sdjax.load_classifier` reads; weights in float16."""
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG).write_text(json.dumps(dataclasses.asdict(sizes), indent=2, sort_keys=True) + "\n", "utf-8")
    (target / LABELS).write_text("".join(f"{label}\n" for label in labels), "utf-8")
    write_params(params, NameTable(), target / WEIGHTS, jnp.float16)


STAGES = ("train", "measure", "export")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path("sdjax/assets/emoji/noise_classifier")
    parser.add_argument("--out", type=Path, default=target, help="where the classifier is exported to")
    options, stages = parse_stages(parser, STAGES)
    names = tuple(concept.name for concept in scenes.concepts())
    sizes = config(len(names))
    if {"train", "measure"} & set(stages):
        data = load_latents(options.state)
        chosen, held_out = split_scenes(encoded_scenes(len(data.means), len(names)))
    if "train" in stages:
        train(options.state, sizes, data, chosen, held_out)
    if "measure" in stages:
        params = state.averaged(options.state / FILE)
        shares = accuracy_by_timestep(NoiseClassifier(sizes), SCHEDULER, params, data, held_out)
        print(f"{len(held_out.rows)} held-out scenes, {DRAWS} times each:\n")
        print(table(SCHEDULER, TIMESTEPS, shares))
    if "export" in stages:
        export(state.averaged(options.state / FILE), sizes, names, options.out)


if __name__ == "__main__":
    main()
