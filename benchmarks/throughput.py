"""Images a second of the embedded model: of the engine alone, and of the whole pipeline with files, in one run.

    python -m benchmarks.throughput [--images 2000] [--rounds 3] [--batch-sizes 4 16] [--steps 20]

Prints one JSON object: the command, the machine, and

    engine     images/s of `Engine.run` at each batch size: the median of rounds, with guidance
    pipeline   images/s of `sdjax generate` into a new output, by what a run with all images costs more than a run with
               one batch (so start-up is left out), and its ratio to the engine, which is measured before and after
    start_up   seconds from the start of the command to the first image in the output, with compiled programs cached
    linear     seconds of the engine by images and by steps, a line fitted to each, and the largest distance from it
               relative to the longest time

Other work on the machine adds to every figure; ratios are of one run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

IMAGES_OF_THE_ENGINE = 64


def engine_of(batch_size: int) -> Any:
    """An engine as the pipeline makes it."""
    from pipelines.config import settings
    from pipelines.loading import make_engine

    return make_engine(settings.make({"engine.batch_size": batch_size}))


def jobs(images: int, steps: int) -> list[Any]:
    """Jobs with guidance and different prompts."""
    from sdjax.jobs.job import Job

    return [Job(prompt=f"a red apple, number {number}", seed=number, steps=steps) for number in range(images)]


def engine_seconds(engine: Any, images: int, steps: int) -> float:
    """Planning and making so many images."""
    begun = time.perf_counter()
    count = sum(result.finite for result in engine.run(map(engine.prepare, jobs(images, steps))))
    assert count == images
    return time.perf_counter() - begun


def rate_of(engine: Any, steps: int, rounds: int) -> float:
    """Images a second: the median of rounds."""
    engine_seconds(engine, engine.images_per_batch, steps)
    return statistics.median(
        IMAGES_OF_THE_ENGINE / engine_seconds(engine, IMAGES_OF_THE_ENGINE, steps) for _ in range(rounds)
    )


class Generated:
    """A run of `sdjax generate` in a process of its own: when its first image was there, and when it ended."""

    def __init__(self, images: int, batch_size: int, steps: int) -> None:
        """Runs it to its end."""
        with tempfile.TemporaryDirectory() as folder:
            prompts, out = Path(folder) / "prompts.txt", Path(folder) / "out"
            prompts.write_text("".join(f"a red apple, number {number}\n" for number in range(images)))
            settings = ("--set", f"engine.batch_size={batch_size}", "--set", f"steps={steps}")
            command = [sys.executable, "-m", "pipelines.cli", "generate", "--quiet", *settings, prompts, out]
            begun = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                self.to_first_image = 0.0
                while process.poll() is None:
                    if not self.to_first_image and next(out.glob("images/*/*.png"), None):
                        self.to_first_image = time.perf_counter() - begun
                    time.sleep(0.01 if not self.to_first_image else 0.1)
            self.seconds = time.perf_counter() - begun
            assert process.returncode == 0, f"{command} ended with {process.returncode}"


def pipeline(images: int, batch_size: int, steps: int, rounds: int) -> dict[str, Any]:
    """The pipeline between two measurements of the engine."""
    engine = engine_of(batch_size)
    before = rate_of(engine, steps, rounds)
    short = [Generated(batch_size, batch_size, steps) for _ in range(rounds)]
    whole = Generated(images, batch_size, steps)
    after = rate_of(engine, steps, rounds)
    rate = (images - batch_size) / (whole.seconds - statistics.median(run.seconds for run in short))
    own = statistics.mean((before, after))
    return {
        "batch_size": batch_size,
        "engine_images_per_second": {"before": before, "after": after},
        "pipeline_images_per_second": rate,
        "ratio": rate / own,
        "start_up_seconds": [run.to_first_image for run in short],
    }


def line(sizes: Sequence[int], seconds: Callable[[int], float], rounds: int) -> dict[str, Any]:
    """A line fitted to the shortest times of rounds."""
    times = np.min([[seconds(size) for size in sizes] for _ in range(rounds)], axis=0)
    slope, intercept = np.polyfit(sizes, times, 1)
    residual = np.abs(times - (slope * np.array(sizes) + intercept)).max() / times.max()
    return {
        "sizes": list(sizes),
        "seconds": times.tolist(),
        "seconds_each": float(slope),
        "seconds_at_0": float(intercept),
        "largest_residual": float(residual),
    }


def linear(rounds: int) -> dict[str, Any]:
    """How the engine's time grows."""
    engine = engine_of(4)
    for steps in (10, 20, 30, 40):  # compiles
        engine_seconds(engine, 4, steps)
    return {
        "images": line((16, 32, 64, 96), lambda images: engine_seconds(engine, images, 20), rounds),
        "steps": line((10, 20, 30, 40), lambda steps: engine_seconds(engine, 16, steps), rounds),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--without-lines", action="store_true", help="leave out `linear`")
    given = parser.parse_args()
    from sdjax.engine.device import device_kind

    pipelines = [pipeline(given.images, size, given.steps, given.rounds) for size in given.batch_sizes]
    import jax

    found = {
        "command": " ".join(["python", "-m", "benchmarks.throughput", *sys.argv[1:]]),
        "machine": {
            "device": device_kind(jax.local_devices()[0]),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "python": platform.python_version(),
            "jax": jax.__version__,
        },
        "pipeline": pipelines,
        **({} if given.without_lines else {"linear": linear(given.rounds)}),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
