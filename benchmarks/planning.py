"""How many plain rows a second are planned: rows of a prompt file to planned jobs, with the embedded model.

    python -m benchmarks.planning [--rows 4000] [--rounds 5] [--processes 2]

In one process, and in several at a time, as `--direct_num_workers=2 --direct_running_mode=multi_processing` and the
workers of a cluster plan: Python plans on one core of a process. Prints one JSON object. Measured is processor time,
so that other work on the machine counts less, and beside it the time on the clock; of several processes the rate is
that of all rows by the time of the slowest process. All are the best of several rounds.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from typing import Any, NamedTuple

from pipelines import worker
from pipelines.config import settings
from pipelines.run import Run
from pipelines.sources.rows import Row
from pipelines.transforms.identity import identity_here
from pipelines.transforms.plan import outcome_of


class Seconds(NamedTuple):
    """What a round took."""

    processor: float
    clock: float


def seconds(run: Run, rows: int, first: int = 0) -> Seconds:
    """The time of one round."""
    numbers = range(first, first + rows)
    given = [Row("prompts.txt", line, {"prompt": f"a red apple, number {line}"}, "", None) for line in numbers]
    processor, clock = time.process_time(), time.perf_counter()
    for row in given:
        for _ in outcome_of(row, run):
            pass
    return Seconds(time.process_time() - processor, time.perf_counter() - clock)


def rounds_of(run: Run, rows: int, rounds: int, start: Any, queue: Any) -> None:
    """Rounds in a process of several, which begin together."""
    with worker.planner_of(run):  # what a process opens once is no part of it
        pass
    for number in range(rounds):
        start.wait()
        queue.put((number, seconds(run, rows)))


def side_by_side(run: Run, rows: int, rounds: int, processes: int) -> list[list[Seconds]]:
    """The times of each round in each of several processes."""
    context = multiprocessing.get_context("spawn")
    start, queue = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=rounds_of, args=(run, rows, rounds, start, queue), daemon=True) for _ in range(processes)
    ]
    for process in started:
        process.start()
    found: list[list[Seconds]] = [[] for _ in range(rounds)]
    for _ in range(rounds * processes):
        number, times = queue.get(timeout=600)
        found[number].append(times)
    for process in started:
        process.join()
    return found


def rates(rows: int, rounds: list[list[Seconds]]) -> dict[str, Any]:
    """Rows a second of rounds, each in one or more processes."""
    processor = [rows * len(times) / max(each.processor for each in times) for times in rounds]
    clock = [rows * len(times) / max(each.clock for each in times) for times in rounds]
    return {"processor": max(processor), "clock": max(clock), "rounds": processor}


def main() -> None:
    """Prints rows a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(settings.make({"model": "emoji"}), folder, folder, "run", workers=1)
        run = run._replace(identity=identity_here(run))
        with worker.planner_of(run):
            pass
        alone = rates(given.rows, [[seconds(run, given.rows)] for _ in range(given.rounds)])
        several = rates(given.rows, side_by_side(run, given.rows, given.rounds, given.processes))
    found = {
        "command": " ".join(["python", "-m", "benchmarks.planning", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "rows_per_second_in_one_process": alone,
        f"rows_per_second_in_{given.processes}_processes": several,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
