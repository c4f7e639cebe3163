"""What it saves to guide only some of the steps: the same images with and without, in turns.

python benchmarks/guidance_interval.py [MODEL] [ROUNDS]
"""

import statistics
import sys
import time

import sdjax


def main() -> None:
    """Prints the median time of a batch in each case, and their ratios."""
    model = sdjax.load(sys.argv[1] if len(sys.argv) > 1 else "emoji")
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    engine = sdjax.Engine(model, batch_size=4)
    cases = {"all steps": (0.0, 1.0), "the first 60 %": (0.0, 0.6), "20 % to 80 %": (0.2, 0.8), "none": None}

    def batch(interval: tuple[float, float] | None) -> float:
        fields = {"guidance_scale": 1.0}
        if interval:
            fields = {"guidance_scale": 4.0, "guidance_start": interval[0], "guidance_end": interval[1]}
        jobs = [
            sdjax.Job(prompt="a pear", seed=seed, sampler="dpmpp_2m", **fields)
            for seed in range(engine.images_per_batch)
        ]
        tasks = [engine.prepare(job) for job in jobs]
        begun = time.perf_counter()
        for _ in engine.run(tasks):
            pass
        return time.perf_counter() - begun

    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):  # the first compiles
        for name, interval in cases.items():
            seconds = batch(interval)
            if turn:
                times[name].append(seconds)
    whole = statistics.median(times["all steps"])
    for name, found in times.items():
        median = statistics.median(found)
        share = f"{median / whole:.2f} of all steps"
        print(f"guided in {name:<16} {median:6.3f} s a batch of {engine.images_per_batch}, {share}")


if __name__ == "__main__":
    main()
