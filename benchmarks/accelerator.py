"""The programs of Stable Diffusion on accelerators: measured where there is one, else compiled and counted.

    python -m benchmarks.accelerator [--only unet,loop,decode] [--model sd15,sd21] [--batch 1,8,32]
                                     [--topology v5e:2x2,v6e:2x2] [--dtype bfloat16] [--json FILE] [--hlo FOLDER]

`make accelerator` runs it in an environment of its own, with libtpu. That compiles for TPUs without one: parameters are
shapes, and nothing is in memory. A case takes from one to some ten minutes on two cores, so they are best picked.

    unet     one call of the UNet for a batch of latents
    loop     the engine's whole sampling program: the text encoder, then 20 steps with guidance (twice the batch each)
    decode   the engine's decoding program: latents to uint8 images

Of each program, for one chip:

    tflop          arithmetic, as XLA counts it, with that of the attention kernels, into which XLA does not look
    traffic_gb     bytes accessed as XLA counts them, and those of the kernels (`compiled_text.Kernel`). An upper bound:
                   XLA counts operands and results of kernels too, and what stays in the chip's own memory
    memory_gb      bytes that instructions move from and to the device's memory, in the layouts that they have there
    temporaries_gb of the device's memory besides parameters
    roofline_ms    the larger of arithmetic_ms and memory_ms (of traffic_gb), by the chip's peaks

Loops of a known length count in full, of the sampler's loop one turn. A program that moves anything between the device
and its host is an error.

On a GPU or TPU the same programs run with random weights, in turns: medians, images a second, share of the peak FLOP/s.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # asks no cloud's metadata server which TPU this is

import jax
import jax.numpy as jnp
import numpy as np
import PIL
from jax.sharding import NamedSharding

from benchmarks import compiled_text
from sdjax.checkpoints.checkpoint import Checkpoint
from sdjax.checkpoints.diffusers_folder import read_scheduler
from sdjax.diffusion.samplers import own_sampler
from sdjax.engine import batches, latents
from sdjax.engine.devices import Devices, Program
from sdjax.engine.fingerprint import EngineIdentity
from sdjax.engine.inputs import BY_IMAGE, BY_SECOND_AXIS, REPLICATED, SHARDING
from sdjax.engine.planner import open_library, planner_for
from sdjax.engine.program import sample_latents
from sdjax.families.stable_diffusion import SD1, SD2
from sdjax.jobs.input_images import read_file
from sdjax.jobs.job import Job
from sdjax.model import DTYPES, Model, model_of, path_of
from sdjax.models.vae_tiles import VAE_TILE, tile_of

CONFIGS = Path(__file__).parent.parent / "tests" / "golden" / "configs"
# Folders with the configs of published models, and of the embedded one, which compiles in a tenth of the time.
MODELS = {"sd15": (CONFIGS / "sd15", SD1), "sd21": (CONFIGS / "sd21", SD2), "emoji": (path_of("emoji"), SD1)}
BATCHES, TOPOLOGIES = (1, 8, 32), ("v5e:2x2", "v6e:2x2")
STEPS, ROUNDS = 20, 7


class Chip(NamedTuple):
    """Peaks of an accelerator: GB/s of memory, TFLOP/s of bfloat16 products."""

    memory: float
    bfloat16: float


# By the beginning of what JAX calls them (`device_kind`), as their makers publish them.
CHIPS = {
    "TPU v5 lite": Chip(819, 197),
    "TPU v6 lite": Chip(1640, 918),
    "NVIDIA A100": Chip(1555, 312),
    "NVIDIA H100": Chip(3350, 989),
    "NVIDIA H200": Chip(4800, 989),
    "NVIDIA L4": Chip(300, 121),
}


class Case(NamedTuple):
    """A program to look at; `batch` is of images on one device."""

    program: str
    model: str
    batch: int

    def __str__(self) -> str:
        return f"{self.program} {self.model} {self.batch}"


class Workload(NamedTuple):
    """A program of the engine's kind, and what it is given, as shapes."""

    program: Program
    params: Any
    inputs: Any


# --- Programs ---


@functools.cache
def model_named(name: str, dtype: str) -> Model:
    """A model of `MODELS`, its parameters as shapes."""
    folder, family = MODELS[name]
    configs = {
        part: network.read_config(json.loads((folder / part / "config.json").read_text()), part)
        for part, network in family.networks.items()
    }
    scheduler, scheduler_class = read_scheduler(
        folder / "scheduler" / "scheduler_config.json", family.folder.pipelines[0]
    )
    tokenizer = folder / "tokenizer"
    checkpoint = Checkpoint(
        family,
        configs,
        {},
        scheduler,
        scheduler_class,
        own_sampler(scheduler_class, scheduler),
        tokenizer_folder=tokenizer if tokenizer.is_dir() else None,
        digest="0" * 64,
    )
    model = model_of(checkpoint, folder, dtype)

    def of_dtype(part: str) -> Any:
        kind = DTYPES[model.vae_dtype if part == "vae" else dtype]
        shapes = family.networks[part].param_shapes(configs[part])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind), shapes)

    model.params.update({**{part: of_dtype(part) for part in family.networks}, "classifier": {}})
    return model


def unet(model: Model, images: int) -> Workload:
    """One call of the UNet."""
    height, width, channels = latents.latent_shape(model, *model.size)
    dtype, config = DTYPES[model.dtype], model.unet.config
    inputs = (
        jax.ShapeDtypeStruct((images, height, width, channels), dtype),
        jax.ShapeDtypeStruct((images,), jnp.float32),
        jax.ShapeDtypeStruct((images, 77, config.per_level("cross_attention_dim")[0]), dtype),
    )

    def apply(params: Any, inputs: Any) -> Any:
        with latents.precision(model):
            return model.unet.apply({"params": params["unet"]}, *inputs)

    return Workload(Program(("unet", model.name), apply), model.params, inputs)


def loop(model: Model, images: int) -> Workload:
    """The engine's sampling program, for jobs that leave all to the model."""
    planner = planner_for(
        model,
        EngineIdentity(model.digest, None, None, PIL.__version__, ()),
        open_library(None, model),
        labels=None,
        read_image=read_file,
        lora_mode="merged",
        vae_tile=VAE_TILE,
    )
    sample = planner.plan(Job(prompt="a red apple", seed=1, steps=STEPS)).first
    shape = latents.latent_shape(model, sample.bucket.height, sample.bucket.width)
    computed = batches.Computed(np.zeros((images, *shape), np.float32), None, None, None, None, ())
    function = functools.partial(sample_latents, model, None, sample.bucket, shape)
    program = Program(("loop", model.name), function, inputs=SHARDING, outputs=(BY_IMAGE, BY_SECOND_AXIS))
    return Workload(program, model.params, batches.inputs([sample] * images, model.params, computed))


def decode(model: Model, images: int) -> Workload:
    """The engine's decoding program."""
    shape = latents.latent_shape(model, *model.size)
    function = functools.partial(latents.decode, model, None, tile_of(*model.size, VAE_TILE))
    inputs = jax.ShapeDtypeStruct((images, *shape), jnp.float32)
    return Workload(Program(("decode", model.name), function), model.params, inputs)


PROGRAMS: dict[str, Callable[[Model, int], Workload]] = {"unet": unet, "loop": loop, "decode": decode}


def compiled(case: Case, dtype: str, devices: Devices) -> tuple[Any, Any, Any]:
    """(program, parameters, inputs) of a case, compiled as the engine does; both as shapes on the devices."""
    workload = PROGRAMS[case.program](model_named(case.model, dtype), case.batch * len(devices.all))

    def on_devices(sharding: Any, tree: Any) -> Any:
        place = NamedSharding(devices.mesh, sharding)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    specs = workload.program.inputs
    params = on_devices(REPLICATED, workload.params)
    inputs = jax.tree.map(on_devices, specs, workload.inputs)
    return devices.compiled(workload.program, params, inputs), params, inputs


# --- Without an accelerator ---


def counted(case: Case, dtype: str, topology: str, hlo: Path | None) -> dict[str, Any]:
    """What the compiled program of a case does, on one chip of a TPU topology.

    Raises:
      RuntimeError: if its loop moves anything between the device and its host.
    """
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    start = time.perf_counter()
    program, _, _ = compiled(case, dtype, Devices(chips))
    seconds = time.perf_counter() - start
    text = program.as_text()
    if hlo is not None:
        hlo.mkdir(parents=True, exist_ok=True)
        (hlo / f"{case} {topology}.txt".replace(" ", "-").replace(":", "-")).write_text(text)
    if moved := compiled_text.host_transfers(text):
        raise RuntimeError(f"{case} for {topology}: {', '.join(moved)} are transfers between the device and its host")
    costs, memory, kernels = program.cost_analysis(), program.memory_analysis(), compiled_text.kernels(text)
    flops = arithmetic(program)
    traffic = costs["bytes accessed"] + sum(kernel.traffic for kernel in kernels) + compiled_text.repeated_traffic(text)
    chip = chip_of(chips[0].device_kind)
    return {
        **case._asdict(),
        "device": topology,
        "tflop": flops / 1e12,
        "traffic_gb": traffic / 1e9,
        "memory_gb": sum(each.traffic for each in compiled_text.instructions(text)) / 1e9,
        "kernels": len(kernels),
        "kernels_gb": sum(kernel.traffic for kernel in kernels) / 1e9,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "arithmetic_ms": flops / chip.bfloat16 / 1e9,
        "memory_ms": traffic / chip.memory / 1e6,
        "roofline_ms": max(flops / chip.bfloat16 / 1e9, traffic / chip.memory / 1e6),
        "compile_s": seconds,
        "largest": compiled_text.largest(text, 12),
    }


def arithmetic(program: Any) -> float:
    """FLOP as XLA counts them, with those of splash attention; cuDNN's attention is left out."""
    flops: float = program.cost_analysis()["flops"]
    return flops + sum(kernel.flops for kernel in compiled_text.kernels(program.as_text()))


def chip_of(kind: str) -> Chip:
    """The peaks of a kind of device.

    Raises:
      LookupError: if they are not known here.
    """
    for name, chip in CHIPS.items():
        if kind.startswith(name):
            return chip
    raise LookupError(f"{kind}: its peaks are not in CHIPS")


# --- With one ---


def measured(cases: Sequence[Case], dtype: str) -> list[dict[str, Any]]:
    """The time of each case on the local devices, in turns."""
    devices = Devices(jax.local_devices())
    ready = []
    for case in cases:
        start = time.perf_counter()
        program, params, _ = compiled(case, dtype, devices)
        given = _random(params), inputs_for(case, dtype, devices)
        ready.append((case, program, given, time.perf_counter() - start))
    seconds: list[list[float]] = [[] for _ in ready]
    for turn in range(ROUNDS + 1):
        for place, (_, program, given, _) in enumerate(ready):
            start = time.perf_counter()
            jax.block_until_ready(program(*given))
            if turn:  # the first one warms up
                seconds[place].append(time.perf_counter() - start)
    return [
        _timed(case, program, devices, statistics.median(taken), compile_s)
        for (case, program, _, compile_s), taken in zip(ready, seconds, strict=True)
    ]


def inputs_for(case: Case, dtype: str, devices: Devices) -> Any:
    """What a case is given, on the devices: ones in the place of shapes."""
    workload = PROGRAMS[case.program](model_named(case.model, dtype), case.batch * len(devices.all))
    ones = jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, np.ndarray) else np.ones(leaf.shape, leaf.dtype), workload.inputs
    )
    return devices.put(ones, workload.program.inputs)


def _random(shapes: Any) -> Any:
    """Small random parameters, drawn on the host: there is nothing to compile for it."""
    rng = np.random.default_rng(0)

    def drawn(leaf: Any) -> Any:
        return jax.device_put((0.02 * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(drawn, shapes)


def _timed(case: Case, program: Any, devices: Devices, seconds: float, compile_s: float) -> dict[str, Any]:
    turns = STEPS if case.program == "loop" else 1  # of the loop XLA counts one
    flops = arithmetic(program) * turns
    peak = chip_of(devices.all[0].device_kind).bfloat16 * 1e12
    return {
        **case._asdict(),
        "device": devices.all[0].device_kind,
        "devices": len(devices.all),
        "ms": seconds * 1e3,
        "images_s": case.batch * len(devices.all) / seconds,
        "tflop": flops / 1e12,
        "flop_use": flops / seconds / peak,
        "temporaries_gb": program.memory_analysis().temp_size_in_bytes / 1e9,
        "compile_s": compile_s,
    }


# --- The command line ---

COLUMNS = {
    "program": "", "model": "", "batch": "d", "device": "", "tflop": ".2f", "traffic_gb": ".1f", "memory_gb": ".1f",
    "kernels_gb": ".2f",
    "temporaries_gb": ".2f", "arithmetic_ms": ".1f", "memory_ms": ".1f", "roofline_ms": ".1f", "ms": ".2f",
    "images_s": ".2f", "flop_use": ".3f", "compile_s": ".0f",
}  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table, of the columns that they have."""
    columns = [name for name in COLUMNS if name in rows[0]]
    lines = [columns, ["---"] * len(columns)]
    lines += [[format(row[name], COLUMNS[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """The command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names, default=list(PROGRAMS), help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--model", type=names, default=["sd15", "sd21"], help=f"of {', '.join(MODELS)}")
    parser.add_argument("--batch", type=names, default=list(map(str, BATCHES)), help="images per device")
    parser.add_argument("--topology", type=names, default=list(TOPOLOGIES), help="of TPUs to compile for")
    parser.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    parser.add_argument("--json", type=Path, help="a file for all that was found")
    parser.add_argument("--hlo", type=Path, help="a folder for the compiled programs' text")
    options = parser.parse_args()
    picked = itertools.product(options.only, options.model, map(int, options.batch))
    cases = [Case(*each) for each in picked]
    if jax.default_backend() != "cpu":
        rows = measured(cases, options.dtype)
    else:
        rows = []
        for topology in options.topology:
            for case in cases:
                rows.append(counted(case, options.dtype, topology, options.hlo))
                print(table(rows[-1:]), flush=True)
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
