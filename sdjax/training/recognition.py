"""Measures the embedded model: a classifier that has seen only the data set's renders judges generated images.

    python -m sdjax.training.recognition [--state DIR] [--font FILE] [STAGE ...]

The stages: `train` trains the classifier (some minutes on two cores; it goes on from what DIR holds), `measure`
generates one image for each concept and some with a background or a side asked for, prints the figures of the
model card, and writes all images to `DIR/recognition.png`, the misses framed in red.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

import sdjax
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.training import scenes, state
from sdjax.training.emoji import FONT, HELD_OUT_SEED, TRAIN_SEED, contact_sheet
from sdjax.training.stages import parse_stages

RECIPE = state.Recipe(steps=2000, learning_rate=3e-3, warmup=100, decay_from=0.5, average=0.995)
BATCH = 64
HELD_OUT = 3000
# The classifier in the folder of runs.
FILE = "recognition.msgpack"
# Images per measure of what else a prompt can ask for: each colour and each side equally often.
COMPOSED = 96
# Side in pixels of the cells that the classifier's first layer sees as one.
_CELL = 4
# How far augmentation goes at most: a shift in pixels, a factor of each colour channel, and, where pixels go from -1 to
# 1, what is added to a channel and the standard deviation of the noise.
_SHIFT, _GAIN, _LIFT, _NOISE = 2, 0.1, 0.1, 0.15
# A pixel this far from the background (in sRGB, of 442) belongs to the object.
_DISTINCT = 60.0
_FRAME, _RED = 3, (230, 0, 30)


class Classifier(nn.Module):
    """Says which concept is in an image: convolutions, then each feature's mean and its strongest answer anywhere.

    Groups of channels are normalised (Wu and He 2018, arXiv:1803.08494), so an image is judged alone. Cells of 4x4
    pixels are taken as channels first, which is what makes this fast on a CPU.
    """

    concepts: int

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n"]:
        """Pixels in [-1, 1], height and width multiples of 8, to logits."""
        batch, height, width, channels = pixels.shape
        cells = pixels.reshape(batch, height // _CELL, _CELL, width // _CELL, _CELL, channels)
        x = cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // _CELL, width // _CELL, -1)
        for features, stride in ((48, 1), (128, 2), (128, 1)):
            x = nn.Conv(features, (3, 3), strides=stride, use_bias=False)(x)
            x = nn.relu(nn.GroupNorm(num_groups=16)(x))
        pooled = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], -1)
        return nn.Dense(self.concepts, kernel_init=nn.initializers.zeros)(pooled)


def example(
    seed: int, index: int, sprites: tuple[Image.Image, ...]
) -> tuple[UInt8[np.ndarray, "h w 3"], int, scenes.Scene]:
    """The `index`-th scene of a seed among those with one concept: (pixels, concept, scene)."""
    rng = np.random.default_rng([seed, index])
    scene = scenes.draw_scene(rng, len(sprites))
    while len(scene.concepts) > 1:
        scene = scenes.draw_scene(rng, len(sprites))
    return scenes.render(scene, sprites), scene.concepts[0], scene


class Examples(NamedTuple):
    """Renders and what is in them."""

    pixels: UInt8[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"]


def held_out_examples(sprites: tuple[Image.Image, ...], count: int) -> Examples:
    """Renders on which `batches` never trains."""
    rows = [example(HELD_OUT_SEED, index, sprites) for index in range(count)]
    return Examples(np.stack([pixels for pixels, _, _ in rows]), np.array([label for _, label, _ in rows], np.int32))


def batches(sprites: tuple[Image.Image, ...], size: int, first: int, held_out: Examples) -> Iterator[Examples]:
    """Batches to train on from the `first`-th on, drawn one ahead in a thread.

    Places, sizes and colours are few, so another seed alone would repeat renders: those that are held out to the last
    pixel are passed over.
    """
    forbidden = {pixels.tobytes() for pixels in held_out.pixels}

    def draw(batch: int) -> Examples:
        # Twice as many to choose from: only a few per cent are passed over.
        drawn = (example(TRAIN_SEED, index, sprites) for index in itertools.count(2 * size * batch))
        rows = list(itertools.islice((row for row in drawn if row[0].tobytes() not in forbidden), size))
        return Examples(np.stack([row[0] for row in rows]), np.array([row[1] for row in rows], np.int32))

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(draw, first)
        for batch in itertools.count(first + 1):
            current, ahead = ahead.result(), pool.submit(draw, batch)
            yield current


def augmented(pixels: Float[Array, "b h w 3"], key: Array) -> Float[Array, "b h w 3"]:
    """Images in [-1, 1] shifted, tinted, blurred and with noise, each in its own measure.

    What a diffusion model does to an object without making another of it, so that no accident of clean renders
    decides.
    """
    batch, height, width, _ = pixels.shape
    for_shift, for_gain, for_lift, for_blur, for_noise, for_grain = jax.random.split(key, 6)
    one_each = (batch, 1, 1, 1)

    border = ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0))
    corners = jax.random.randint(for_shift, (batch, 2), 0, 2 * _SHIFT + 1)
    crop = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), (height, width, 3)))
    x = crop(jnp.pad(pixels, border, mode="edge"), corners)

    x = x * jax.random.uniform(for_gain, (batch, 1, 1, 3), minval=1 - _GAIN, maxval=1 + _GAIN)
    x = x + jax.random.uniform(for_lift, (batch, 1, 1, 3), minval=-_LIFT, maxval=_LIFT)

    blurred = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
    x = x + jax.random.uniform(for_blur, one_each) * (blurred - x)

    noise = jax.random.normal(for_noise, x.shape) * jax.random.uniform(for_grain, one_each, maxval=_NOISE)
    return jnp.clip(x + noise, -1, 1)


def _in_unit(pixels: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    return pixels.astype(jnp.float32) / 127.5 - 1


def recognition_loss(
    classifier: Classifier,
    params: state.Params,
    pixels: UInt8[Array, "b h w 3"],
    labels: Int[Array, " b"],
    key: Array,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Cross-entropy on augmented renders, and the share that is right."""
    logits = classifier.apply({"params": params}, augmented(_in_unit(pixels), key))
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {"right": right.mean()}


def classify(params: state.Params, pixels: UInt8[np.ndarray, "n h w 3"], batch: int = 100) -> Float[np.ndarray, "n c"]:
    """The classifier's logits for images as they are, `batch` at a time."""
    classifier = Classifier(params["Dense_0"]["bias"].size)
    network = jax.jit(lambda params, pixels: classifier.apply({"params": params}, _in_unit(pixels)))
    parts = []
    for start in range(0, len(pixels), batch):
        part = pixels[start : start + batch]
        whole = np.pad(part, ((0, batch - len(part)), (0, 0), (0, 0), (0, 0)))
        parts.append(np.asarray(network(params, jnp.asarray(whole)))[: len(part)])
    return np.concatenate(parts)


def among_best(
    logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], best: int = 1
) -> Bool[np.ndarray, " n"]:
    """Whether the right concept is among the `best` ones."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :best]
    return (order == labels[:, None]).any(axis=1)


def train(
    folder: Path,
    sprites: tuple[Image.Image, ...],
    recipe: state.Recipe = RECIPE,
    batch: int = BATCH,
    held_out_count: int = HELD_OUT,
) -> state.Params:
    """Trains the classifier to its last step; prints how many held-out renders it recognises.

    Returns:
      Its averaged parameters.
    """
    classifier = Classifier(len(sprites))
    params = classifier.init(jax.random.key(30), jnp.zeros((1, scenes.SIZE, scenes.SIZE, 3)))["params"]
    init, update = state.make_update(lambda p, b, k: recognition_loss(classifier, p, b[0], b[1], k), recipe, seed=31)
    held_out = held_out_examples(sprites, held_out_count)

    def show(current: state.TrainState) -> None:
        share = among_best(classify(current.average, held_out.pixels), held_out.labels).mean()
        print(f"step {int(current.step)}: {100 * share:.1f} % of {held_out_count} held-out renders recognised")

    trained = state.run(
        update,
        state.restore(folder / FILE, init(params)),
        lambda first: batches(sprites, batch, first, held_out),
        steps=recipe.steps,
        path=folder / FILE,
        title="recognition",
        on_save=show,
    )
    return trained.average


class Figure(NamedTuple):
    """A line of the report: the share of so many images for which `what` holds."""

    what: str
    share: float
    images: int


def figure(what: str, held: Bool[np.ndarray, " n"]) -> Figure:
    """The share of images for which it held."""
    return Figure(what, float(held.mean()), len(held))


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown."""
    rows = [f"| {line.what} | {100 * line.share:.1f} % | {line.images:,} |" for line in figures]
    return "\n".join(["| measure | share | images |", "|---|---:|---:|", *rows])


def misses(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], names: Sequence[str]) -> list[str]:
    """What was taken for something else, and for what."""
    taken = logits.argmax(axis=1)
    return [
        f"{names[label]}: taken for {names[other]}"
        for label, other in zip(labels, taken, strict=True)
        if label != other
    ]


class Prompt(NamedTuple):
    """What an image is asked to show; `color` and `side` are "" where nothing is said."""

    text: str
    label: int
    color: str = ""
    side: str = ""


def prompts(names: Sequence[str]) -> tuple[Prompt, ...]:
    """One prompt for each concept, then `COMPOSED` with a background and as many with a side."""
    called = [scenes.with_article(name) for name in names]
    spread = [index * len(names) // COMPOSED for index in range(COMPOSED)]
    plain = [Prompt(text, label) for label, text in enumerate(called)]
    colored = [
        Prompt(f"{called[label]} on {scenes.with_article(color)} background", label, color=color)
        for label, color in zip(spread, itertools.cycle(scenes.COLORS), strict=False)
    ]
    aside = [
        Prompt(f"{called[label]} on the {side}", label, side=side)
        for label, side in zip(spread, itertools.cycle(("left", "right")), strict=False)
    ]
    return (*plain, *colored, *aside)


def border_color(pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " 3"]:
    """The median colour of the outermost pixels."""
    edges = (pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1])
    return np.median(np.concatenate(edges), axis=0)


def background(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """The colour of `scenes.COLORS` that is nearest to the border's, in sRGB."""
    border = border_color(pixels)
    return min(scenes.COLORS, key=lambda name: float(np.linalg.norm(border - np.array(scenes.COLORS[name]))))


def side_of(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Where the middle of what is not background lies: "left", "right", or "" for neither.

    Scenes have it at 1/4, 1/2 or 3/4 of the width; halfway between these is where one ends.
    """
    distance = np.linalg.norm(pixels - border_color(pixels), axis=-1)
    columns = (distance > _DISTINCT).sum(axis=0)
    if not columns.any():
        return ""
    middle = (columns * (np.arange(len(columns)) + 0.5)).sum() / columns.sum() / len(columns)
    return "left" if middle < 3 / 8 else "right" if middle > 5 / 8 else ""


def summary(
    asked: Sequence[Prompt], pixels: UInt8[np.ndarray, "n h w 3"], logits: Float[np.ndarray, "n c"]
) -> tuple[Figure, ...]:
    """How far images show what their prompts ask for.

    Args:
      asked: from `prompts`.
      pixels: an image for each.
      logits: of `classify`.
    """
    labels = np.array([prompt.label for prompt in asked])
    first = among_best(logits, labels)
    colored = np.array([bool(prompt.color) for prompt in asked])
    aside = np.array([bool(prompt.side) for prompt in asked])
    plain = ~(colored | aside)
    colors = [background(image) == prompt.color for prompt, image in zip(asked, pixels, strict=True) if prompt.color]
    sides = [side_of(image) == prompt.side for prompt, image in zip(asked, pixels, strict=True) if prompt.side]
    return (
        figure("concept recognised", first[plain]),
        figure("concept among the first five", among_best(logits, labels, 5)[plain]),
        figure("background of the colour asked for", np.array(colors)),
        figure("concept recognised with a background asked for", first[colored]),
        figure("on the side asked for", np.array(sides)),
        figure("concept recognised with a side asked for", first[aside]),
    )


def framed(pixels: UInt8[np.ndarray, "n h w 3"], missed: Bool[np.ndarray, " n"]) -> UInt8[np.ndarray, "n i j 3"]:
    """Images with a margin, red for those missed and white for the others."""
    border = ((0, 0), (_FRAME, _FRAME), (_FRAME, _FRAME), (0, 0))
    inside = np.pad(np.ones(pixels.shape[:3], bool), border[:3])[..., None]
    margin = np.where(missed[:, None, None, None], np.array(_RED, np.uint8), np.uint8(255))
    return np.where(inside, np.pad(pixels, border), margin)


def trained_classifier(folder: Path, concepts: int) -> state.Params:
    """The averaged parameters that `train` left in the folder.

    Raises:
      FileNotFoundError: if it left none.
      ValueError: if they are for another number of concepts.
    """
    path = folder / FILE
    params = state.averaged(path)
    known = params["Dense_0"]["bias"].size
    if known != concepts:
        raise ValueError(f"{path} knows {known} concepts, emoji.tsv has {concepts}; remove it and train again")
    return params


def jobs(
    asked: Sequence[Prompt], *, seed: int, steps: int, guidance_scale: float, sampler: str
) -> tuple[sdjax.Job, ...]:
    """A job for each prompt, with seeds that count up from `seed`."""
    return tuple(
        sdjax.Job(prompt=prompt.text, seed=seed + index, steps=steps, guidance_scale=guidance_scale, sampler=sampler)
        for index, prompt in enumerate(asked)
    )


def measure(folder: Path, sprites: tuple[Image.Image, ...], options: argparse.Namespace) -> None:
    """Generates and judges the images; prints the report and writes the sheet."""
    names = [concept.name for concept in scenes.concepts()]
    params = trained_classifier(folder, len(names))
    asked = prompts(names)
    print(f"making {len(asked)} images ...", flush=True)
    results = sdjax.generate(
        sdjax.load(options.model),
        jobs(
            asked,
            seed=options.seed,
            steps=options.steps,
            guidance_scale=options.guidance_scale,
            sampler=options.sampler,
        ),
        batch_size=options.batch_size,
    )
    pixels = np.stack([result.image for result in results])
    logits = classify(params, pixels)

    held_out = held_out_examples(sprites, HELD_OUT)
    renders = among_best(classify(params, held_out.pixels), held_out.labels)
    print(table([figure("held-out renders recognised (not generated)", renders), *summary(asked, pixels, logits)]))
    concepts, labels = slice(len(names)), np.arange(len(names))
    print("\nmissed:", *misses(logits[concepts], labels, names), sep="\n  ")
    missed = ~among_best(logits[concepts], labels)
    target = folder / "recognition.png"
    contact_sheet(framed(pixels[concepts], missed), 20).save(target)
    print(f"\n{target}: all images in the order of emoji.tsv")


STAGES = ("train", "measure")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf with bitmaps")
    parser.add_argument("--model", default="emoji", help="what is measured: a bundled name or a folder")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; the others count up from it")
    # As in configs/emoji.yaml: what a user gets.
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--sampler", choices=SAMPLERS, default="dpmpp_2m")
    parser.add_argument("--batch-size", type=int, default=4)
    options, stages = parse_stages(parser, STAGES)
    sprites = scenes.sprites(options.font)
    if "train" in stages:
        train(options.state, sprites)
    if "measure" in stages:
        measure(options.state, sprites, options)


if __name__ == "__main__":
    main()
