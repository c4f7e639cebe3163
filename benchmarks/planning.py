"""How many plain rows a second one core plans: rows of a prompt file to planned jobs, with the embedded model.

    python benchmarks/planning.py [--rows 4000] [--rounds 5]

Measured is processor time, and the best of several rounds, so that other work on the machine counts less.
"""

import argparse
import tempfile
import time

from pipelines import worker
from pipelines.config import settings
from pipelines.run import Run
from pipelines.sources.rows import Row
from pipelines.transforms.identity import identity_here
from pipelines.transforms.plan import outcome_of


def seconds(run: Run, rows: int) -> float:
    """The processor time of one round."""
    given = [Row("prompts.txt", line, {"prompt": f"a red apple, number {line}"}, "", None) for line in range(rows)]
    begun = time.process_time()
    for row in given:
        for _ in outcome_of(row, run):
            pass
    return time.process_time() - begun


def main() -> None:
    """Prints rows a second, for each round and the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(settings.make({"model": "emoji"}), folder, folder, "run", workers=1)
        run = run._replace(identity=identity_here(run))
        with worker.planner_of(run):  # what a process opens once is no part of it
            pass
        rates = [given.rows / seconds(run, given.rows) for _ in range(given.rounds)]
    print(f"rows a second: {', '.join(f'{rate:.0f}' for rate in rates)}; best {max(rates):.0f}")


if __name__ == "__main__":
    main()
