"""What accelerations save and what they cost: the same images with and without them, in turns.

python benchmarks/accelerations.py [emoji|sd15] [ROUNDS] [PICTURE]

`emoji` draws images with the embedded model, and compares them with the exact ones; with a PICTURE it saves some of
them there. `sd15` evaluates a UNet of Stable Diffusion 1.5's size with random weights (4 GB of memory, minutes), once
in each way, from which the time of 20 steps follows.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import sdjax
from sdjax.engine.accelerations import deep_evaluations
from sdjax.families.networks import UNET_2D_CONDITION_MODEL
from sdjax.images.lettering import draw_text
from sdjax.models import UNet, UNetConfig
from sdjax.models.deep_cache import deep_cache
from sdjax.models.t_gate import cross_attention
from sdjax.models.token_merging import token_merging

STEPS = 20
# Height of a line of text in the picture, in pixels.
_LABEL = 22
Fields = Mapping[str, Any]
# The first is exact, the second what fewer steps give, to compare with.
CASES: Mapping[str, Fields] = {
    "exact": {},
    "10 steps": {"steps": 10},
    "DeepCache, every 2nd": {"deep_cache_interval": 2},
    "DeepCache, every 3rd": {"deep_cache_interval": 3},
    "DeepCache, every 3rd, branch 2": {"deep_cache_interval": 3, "deep_cache_branch": 2},
    "token merging 0.5": {"token_merging_ratio": 0.5},
    "T-GATE after 10": {"gate_step": 10},
    "T-GATE after 15": {"gate_step": 15},
    "DeepCache, every 2nd, T-GATE after 15": {"deep_cache_interval": 2, "gate_step": 15},
}
# What the picture shows of these.
SHOWN = ("exact", "DeepCache, every 2nd", "DeepCache, every 3rd", "token merging 0.5", "T-GATE after 10")
PROMPTS = (
    "a red apple", "a lion", "a cat with tears of joy", "a sailboat", "a cactus", "a snowman", "a rocket", "a penguin",
    "a blue heart", "a tree", "a bus", "a frog", "a rainbow", "a yellow star", "a pizza", "a violin",
)  # fmt: skip
# How many of the first the picture shows.
_SHOWN_PROMPTS = 12


def in_turns(cases: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The median seconds of each case, and what each gave; a round before these compiles.

    On a CPU they are those of all cores together, which other programs at the same time hardly change.
    """
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in cases}
    given = {}
    for turn in range(rounds + 1):
        for name, run in cases.items():
            begun = clock()
            given[name] = run()
            if turn:
                times[name].append(clock() - begun)
    return {name: statistics.median(found) for name, found in times.items()}, given


def images_of(engine: sdjax.Engine, fields: Fields) -> np.ndarray:
    """The images of all prompts."""
    given = {"steps": STEPS, "guidance_scale": 4.0, "sampler": "dpmpp_2m", **fields}
    tasks = [engine.prepare(sdjax.Job(prompt=prompt, seed=seed, **given)) for seed, prompt in enumerate(PROMPTS)]
    images = {result.metadata["id"]: result.image for result in engine.run(tasks)}
    return np.stack([images[task.id] for task in tasks])


def emoji(rounds: int, picture: str | None) -> None:
    """Prints time, gain and error of each case."""
    engine = sdjax.Engine(sdjax.load("emoji"), batch_size=8)
    seconds, images = in_turns({name: partial(images_of, engine, fields) for name, fields in CASES.items()}, rounds)
    exact = images["exact"].astype(np.float64)
    print("| case | ms an image | gain | RMS error of 255, median | PSNR, mean |\n|---|---|---|---|---|")
    for name, found in images.items():
        squares = ((found - exact) ** 2).mean(axis=(1, 2, 3))
        error, ratio = np.median(np.sqrt(squares)), seconds["exact"] / seconds[name]
        psnr = "" if name == "exact" else f"{(10 * np.log10(255**2 / squares)).mean():.1f} dB"
        print(f"| {name} | {1000 * seconds[name] / len(PROMPTS):.1f} | {ratio:.2f} | {error:.1f} | {psnr} |")
    if picture:
        save(picture, [(name, images[name][:_SHOWN_PROMPTS]) for name in SHOWN])


def save(path: str, rows: Sequence[tuple[str, np.ndarray]]) -> None:
    """A row of images for each case, with its name above."""
    count, height, width = rows[0][1].shape[:3]
    page = Image.new("RGB", (count * width, len(rows) * (height + _LABEL)), "white")
    for number, (name, images) in enumerate(rows):
        top = number * (height + _LABEL)
        draw_text(page, (4, top + 4), name, "black", _LABEL - 8)
        page.paste(Image.fromarray(np.concatenate(list(images), axis=1)), (0, top + _LABEL))
    page.save(path, optimize=True)


def sd15(rounds: int) -> None:
    """Prints the time of an evaluation in each way, and what follows for all steps."""
    config = UNetConfig(cross_attention_dim=768)
    rng = np.random.default_rng(0)
    shapes = UNET_2D_CONDITION_MODEL.param_shapes(config)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    unet, variables = UNet(config), {"params": params}
    two, one = (
        (jnp.asarray(rng.standard_normal((count, 64, 64, 4), np.float32)), jnp.full(count, 500.0),
         jnp.asarray(rng.standard_normal((count, 77, config.cross_attention_dim), np.float32)))
        for count in (2, 1)
    )  # fmt: skip

    @jax.jit
    def exact(variables: Any, inputs: Any) -> Any:
        return unet.apply(variables, *inputs)

    @jax.jit
    def kept(variables: Any, inputs: Any) -> Any:
        with deep_cache(0, None) as features, cross_attention(None) as outputs:
            unet.apply(variables, *inputs)
        return features[0], outputs

    @jax.jit
    def shallow(variables: Any, inputs: Any, deep: Any) -> Any:
        with deep_cache(0, deep):
            return unet.apply(variables, *inputs)

    @jax.jit
    def merged(variables: Any, inputs: Any) -> Any:
        with token_merging(0.5, (64, 64), lambda layer, shape: jnp.zeros((1, *shape), jnp.int32)):
            return unet.apply(variables, *inputs)

    @jax.jit
    def gated(variables: Any, inputs: Any, outputs: Any) -> Any:
        with cross_attention(outputs):
            return unet.apply(variables, *inputs)

    deep, outputs = kept(variables, two)
    outputs = {path: output[:1] for path, output in outputs.items()}
    cases = {
        "exact": lambda: exact(variables, two),
        "above the deep features": lambda: shallow(variables, two, deep),
        "token merging 0.5": lambda: merged(variables, two),
        "behind the gate": lambda: gated(variables, one, outputs),
    }
    seconds, _ = in_turns({name: lambda run=run: jax.block_until_ready(run()) for name, run in cases.items()}, rounds)
    print("| evaluation | s | gain |\n|---|---|---|")
    for name, found in seconds.items():
        print(f"| {name} | {found:.2f} | {seconds['exact'] / found:.2f} |")
    whole = STEPS * seconds["exact"]
    print(f"\n| {STEPS} steps | gain |\n|---|---|")
    for interval in (2, 3, 5):
        computed = int(deep_evaluations(STEPS, interval, None, None).sum())
        taken = computed * seconds["exact"] + (STEPS - computed) * seconds["above the deep features"]
        print(f"| DeepCache, interval {interval} | {whole / taken:.2f} |")
    print(f"| token merging 0.5 | {seconds['exact'] / seconds['token merging 0.5']:.2f} |")
    for gate in (10, 15):
        taken = gate * seconds["exact"] + (STEPS - gate) * seconds["behind the gate"]
        print(f"| T-GATE after {gate} | {whole / taken:.2f} |")


def main() -> None:
    """Measures what is asked for."""
    model, rounds, picture = (*sys.argv[1:], *("emoji", "5", "")[len(sys.argv) - 1 :])
    if model == "sd15":
        sd15(int(rounds))
    else:
        emoji(int(rounds), picture)


if __name__ == "__main__":
    main()
