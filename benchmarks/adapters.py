"""LoRAs merged into the weights against LoRAs beside them, for each image of a batch: the same jobs, in turns.

    python benchmarks/adapters.py jobs [--ranks 4 32] [--loras 64 2] [--steps 20]
    python benchmarks/adapters.py forward CONFIG [--ranks 4 8 32 128] [--latents 16]

`jobs` draws with a whole engine: so many images, each with one of so many LoRAs, which are in memory already. Merged,
images with another LoRA are a batch of their own, however few. A second engine merges too, and has batches of one
image, which none of that leaves empty. Its last column is the time relative to the first.

`forward` takes one of the networks that `tests/golden/configs` has (sd15) with random weights, and measures the parts:
the UNet for a batch with guidance, merged and with each image's own LoRA beside the weights; merging one LoRA; and
bringing those of a batch to the device.

LoRAs are of the linear layers of the UNet's transformers and of the text encoder, as kohya's scripts make them.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import sdjax
from sdjax.adapters.lora import changed
from sdjax.adapters.lora_changes import LowRank, Product
from sdjax.adapters.per_image import Weighted, adding, arrays, low_rank, shape_of
from sdjax.checkpoints.name_table import file_names
from sdjax.engine.device import compiler_options
from sdjax.families.stable_diffusion import SD1, TEXT_NETWORKS
from sdjax.models import UNet, UNetConfig

CONFIGS = Path(__file__).parent.parent / "tests" / "golden" / "configs"
ATTENTION = {"to_q", "to_k", "to_v", "to_out_0", "q_proj", "k_proj", "v_proj", "out_proj"}
LAYERS = ATTENTION | {"proj", "net_2", "proj_in", "proj_out", "fc1", "fc2"}
PROMPTS = ("red apple", "blue bird", "green tree", "yellow sun")


def in_turns(cases: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each, after one time that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, run in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def random_changes(params: Any, rank: int, seed: int) -> dict[tuple[str, ...], LowRank]:
    """A LoRA with random weights."""
    rng = np.random.default_rng(seed)
    changes = {}
    for steps, leaf in jax.tree.leaves_with_path(params):
        path = tuple(step.key for step in steps)
        if path[-1] == "kernel" and path[-2] in LAYERS:
            inputs = int(np.prod(leaf.shape[:-1]))
            down = rng.standard_normal((*leaf.shape[:-1], rank), np.float32) / np.sqrt(inputs)
            up = rng.standard_normal((rank, leaf.shape[-1]), np.float32) / 10
            changes[path] = LowRank(Product(down, up))
    return changes


def write_lora(file: Path, changes: Mapping[tuple[str, ...], LowRank]) -> None:
    """A file as peft names its tensors."""
    tensors = {}
    for (part, *path), change in changes.items():
        module = f"{part}.{file_names(tuple(path), SD1.networks[part].table)[0].removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(change.product.down.T)
        tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(change.product.up.T)
    save_file(tensors, file)


def measure_jobs(options: argparse.Namespace) -> None:
    """Prints the seconds for all jobs in each way."""
    model = sdjax.load("emoji")
    params = {part: model.params[part] for part in model.family.adapted_networks}
    for rank in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(max(options.loras)):
                write_lora(Path(folder) / f"lora{number}.safetensors", random_changes(params, rank, number))
            library = sdjax.Library(loras=folder)
            engines = {
                "merged": sdjax.Engine(model, batch_size=options.batch_size, library=library),
                "merged, one a batch": sdjax.Engine(model, batch_size=1, library=library),
                "beside": sdjax.Engine(model, batch_size=options.batch_size, library=library, lora_mode="batched"),
            }
            for count in options.loras:
                jobs = [job(number, count, options.steps) for number in range(options.jobs)]
                cases = {
                    name: functools.partial(draw, engine, [engine.prepare(each) for each in jobs])
                    for name, engine in engines.items()
                }
                title = f"{options.jobs} jobs with {count} LoRAs of rank {rank}, {options.steps} steps"
                report(title, in_turns(cases, options.rounds))


def job(number: int, loras: int, steps: int) -> sdjax.Job:
    """An image with one of so many LoRAs."""
    prompt = f"{PROMPTS[number % len(PROMPTS)]} <lora:lora{number % loras}:0.8>"
    return sdjax.Job(prompt=prompt, seed=number, steps=steps, sampler="euler")


def draw(engine: sdjax.Engine, tasks: Sequence[Any]) -> None:
    """Makes all images."""
    for _ in engine.run(tasks):
        pass


def measure_forward(options: argparse.Namespace) -> None:
    """Prints the seconds of the parts."""
    config = UNetConfig.from_json(json.loads((CONFIGS / options.config / "unet" / "config.json").read_text()))
    unet = UNet(config)
    rng = np.random.default_rng(0)
    shapes = SD1.networks["unet"].param_shapes(config)
    params = jax.device_put(
        {"unet": jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02), shapes)}
    )
    rows = 2 * options.batch_size
    width = config.per_level("cross_attention_dim")[0]
    given = (
        jnp.zeros((rows, options.latents, options.latents, config.in_channels)),
        jnp.full((rows,), 500.0),
        jnp.zeros((rows, 77, width)),
    )
    whole = {"unet": shapes, TEXT_NETWORKS[0]: {}}

    def plain(params: Any, *given: jax.Array) -> jax.Array:
        return unet.apply({"params": params["unet"]}, *given)

    def beside(params: Any, changes: Any, *given: jax.Array) -> jax.Array:
        with adding(changes["unet"], images_first=False):
            return plain(params, *given)

    def brought(images: Sequence[Sequence[Weighted]]) -> Any:
        return jax.device_put(arrays(images, shape_of(images[0]), whole, np.float32))

    step = compiled(plain, params, *given)
    cases: dict[str, Callable[[], Any]] = {"step, merged": functools.partial(step, params, *given)}
    weights = [{"unet": jnp.float32(0.8)}]
    for rank in options.ranks:
        changes = random_changes({"unet": shapes}, rank, rank)
        factors = low_rank(changes)
        assert factors is not None
        images = [[Weighted(factors, 0.8, 0.8)]] * options.batch_size
        layers = brought(images)
        step = compiled(beside, params, layers, *given)
        merge = compiled(changed, params, [changes], weights)
        cases |= {
            f"rank {rank}: step, beside": functools.partial(step, params, layers, *given),
            f"rank {rank}: merging one": functools.partial(merge, params, [changes], weights),
            f"rank {rank}: a batch's to the device": functools.partial(brought, images),
        }
    title = f"UNet of {options.config}, {options.batch_size} images with guidance, latents of {options.latents}"
    report(title, in_turns(cases, options.rounds))


def compiled(function: Callable[..., Any], *given: Any) -> Callable[..., Any]:
    """A function as the engine compiles it."""
    options = compiler_options(jax.default_backend())
    return jax.jit(function).lower(*given).compile(options)


def report(title: str, seconds: Mapping[str, float]) -> None:
    """Prints a table; the last column is relative to the first row."""
    print(f"\n{title}")
    first = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(f"  {name:32} {value:9.4f} s {value / first:7.2f}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    commands = parser.add_subparsers(required=True)
    jobs = commands.add_parser("jobs")
    jobs.add_argument("--jobs", type=int, default=64)
    jobs.add_argument("--loras", type=int, nargs="+", default=[64, 2])
    jobs.add_argument("--ranks", type=int, nargs="+", default=[4, 32])
    jobs.add_argument("--steps", type=int, default=20)
    jobs.set_defaults(measure=measure_jobs)
    forward = commands.add_parser("forward")
    forward.add_argument("config")
    forward.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 32, 128])
    forward.add_argument("--latents", type=int, default=16, help="side of the latents")
    forward.set_defaults(measure=measure_forward)
    options = parser.parse_args()
    options.measure(options)


if __name__ == "__main__":
    main()
