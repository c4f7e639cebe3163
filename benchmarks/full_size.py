"""Stable Diffusion 1.5 at full size with random weights: a folder as diffusers writes it, loaded and run for one step.

    python benchmarks/full_size.py DIR [--variant fp16] [--dtype float32] [--size 512] [--rounds 3] [--file FILE]

`make benchmark` runs it in the environment of `make parity`, which has diffusers; DIR keeps the folder (4 GB of
disk) for the next time. With FILE, a single file is loaded instead (`sdjax convert DIR FILE` writes one). Each
measurement has a process of its own, so that its peak of resident memory is its own:

    read      reading the weights' files to the end, and nothing else
    keep      reading them, hashing them (sha256) beside that, and keeping every byte in memory: what no loader that
              knows which file it has can do without
    load      sdjax.load
    image   sdjax.load, then one step of Euler with guidance and decoding, twice: with compilation, and without

`read`, `keep` and `load` take turns, ROUNDS times with the files in the system's cache and, where this process may
empty it (as root, on Linux), ROUNDS times from the disk. Their medians are told; how often loading takes the time of
reading and of keeping; and how often the whole process takes the files' size in memory (at most 1.2).
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CONFIGS = Path(__file__).parent.parent / "tests" / "golden" / "configs" / "sd15"
MEASURES = ("read", "keep", "load", "image")
CACHE = Path("/proc/sys/vm/drop_caches")
# Bytes that are read and hashed at once.
PIECE = 1 << 22


def write(folder: Path, variant: str | None) -> None:
    """Has diffusers write the folder, unless a whole one is there."""
    if (folder / "model_index.json").is_file():
        return
    import diffusers
    import torch
    import transformers

    from sdjax.text.vocabulary import clip_vocabulary, write_tokenizer

    def config(part: str) -> dict[str, object]:
        return json.loads((CONFIGS / part / "config.json").read_text())

    write_tokenizer(folder / "tokenizer", clip_vocabulary(), 77)
    torch.manual_seed(0)
    parts = {
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**config("text_encoder"))),
        "unet": diffusers.UNet2DConditionModel.from_config(config("unet")),
        "vae": diffusers.AutoencoderKL.from_config(config("vae")),
    }
    pipeline = diffusers.StableDiffusionPipeline(
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=diffusers.PNDMScheduler.from_pretrained(CONFIGS / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    if variant == "fp16":
        pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, variant=variant)


def weights(options: argparse.Namespace) -> list[Path]:
    """The files with weights."""
    return [options.file] if options.file else sorted(options.folder.glob("*/*.safetensors"))


def empty_cache() -> bool:
    """Has the system forget the files it has read; False if it does not let us."""
    try:
        os.sync()
        CACHE.write_text("3")
    except OSError:
        return False
    return True


def peak() -> int:
    """The most memory that this process has had resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """The memory that this process has resident now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def keep(files: list[Path]) -> float:
    """Seconds that reading, hashing and keeping files takes."""
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as hashing:
        for file in files:
            digest, kept = hashlib.sha256(), np.empty(file.stat().st_size, np.uint8)
            with file.open("rb", buffering=0) as stream:
                done = [
                    hashing.submit(digest.update, kept[first : first + stream.readinto(kept[first : first + PIECE])])
                    for first in range(0, len(kept), PIECE)
                ]
            for each in done:
                each.result()
    return time.perf_counter() - start


def measure(what: str, options: argparse.Namespace) -> dict[str, float]:
    """One measurement, in this process: seconds, and bytes as GB."""
    report: dict[str, float] = {}
    if what == "read":
        start = time.perf_counter()
        buffer = bytearray(1 << 24)
        for file in weights(options):
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass
        return {"seconds": time.perf_counter() - start}
    if what == "keep":
        return {"seconds": keep(weights(options))}
    import jax

    import sdjax

    jax.local_devices()
    before = resident()
    start = time.perf_counter()
    name, kinds = options.file or options.folder, {"prediction_type": "epsilon"} if options.file else {}
    model = sdjax.load(name, variant=options.variant, dtype=options.dtype, **kinds)
    jax.block_until_ready(model.params)
    report["seconds"] = time.perf_counter() - start
    report["gb_before"], report["gb_at_most"] = before / 1e9, peak() / 1e9
    if what == "image":
        job = sdjax.Job(prompt="a red apple", seed=1, steps=1, sampler="euler", width=options.size, height=options.size)
        engine = sdjax.Engine(model, batch_size=1, devices=jax.local_devices()[:1])
        for name in ("seconds_first", "seconds_second"):
            start = time.perf_counter()
            [result] = engine.run([engine.prepare(job)])
            report[name] = time.perf_counter() - start
        if result.image.shape != (options.size, options.size, 3) or not result.finite:
            raise RuntimeError(f"the image is {result.image.shape}, finite: {result.finite}")
        report["gb_at_most"] = peak() / 1e9
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--variant", choices=["fp16"], help="as diffusers names it; without it float32")
    parser.add_argument("--dtype", default="float32", help="of parameters and arithmetic")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="how often reading and loading are measured")
    parser.add_argument("--file", type=Path, help="a single file that is loaded in place of the folder")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    write(options.folder, options.variant)
    size = sum(file.stat().st_size for file in weights(options))
    print(f"weights: {size / 1e9:.3f} GB")
    for where, prepare in (("disk", empty_cache), ("cache", lambda: True)):
        if not prepare():
            print("the system's cache can't be emptied: nothing is measured from the disk")
            continue
        taken: dict[str, list[dict[str, float]]] = {"read": [], "keep": [], "load": []}
        for what in [*taken] * options.rounds:
            prepare()
            taken[what].append(run(what))
        seconds = {what: statistics.median(report["seconds"] for report in reports) for what, reports in taken.items()}
        memory = max(report["gb_at_most"] for report in taken["load"]) * 1e9 / size
        print(f"from the {where}:".ljust(16), *(f"{what} {value:.2f} s" for what, value in seconds.items()), sep="  ")
        print(
            " " * 16,
            f"{seconds['load'] / seconds['read']:.2f} times the time of reading, "
            f"{seconds['load'] / seconds['keep']:.2f} of keeping",
            f"{memory:.3f} times the memory",
            sep="  ",
        )
    print("image".ljust(16), *(f"{name} {value:.2f}" for name, value in run("image").items()), sep="  ")


def run(what: str) -> dict[str, float]:
    """One measurement, in a process of its own."""
    done = subprocess.run([sys.executable, *sys.argv, "--measure", what], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
