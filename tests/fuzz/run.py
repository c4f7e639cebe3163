"""Runs the cases of some kinds, in a process of its own.

    python -m tests.fuzz.run FIRST LAST KIND...

A KIND is a module of `tests.fuzz.kinds` with two functions: `warm(folder)` does everything once, so that what is
imported and compiled is no case's; `case(rng, folder)` makes hostile input from the random numbers alone and has it
read, gives whether it was refused with a clear error, and raises on everything else: a traceback, nonsense read as if
it were sound, a message that does not name what is wrong. A failing case is told by its number and runs alone as
`NUMBER NUMBER+1 KIND`. The last line printed is JSON: how many cases of each kind were read, and how many refused.
"""

import importlib
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.fuzz.limits import limited


def counts_of(kind: str, cases: range) -> dict[str, int]:
    """How many cases of a kind were read, and how many refused."""
    module = importlib.import_module(f"tests.fuzz.kinds.{kind}")
    counts = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as root:
        warm = Path(root) / "warm"
        warm.mkdir()
        module.warm(warm)
        for number in cases:
            folder = Path(root) / str(number)
            folder.mkdir()
            try:
                with limited():
                    refused = module.case(random.Random(number), folder)
            except BaseException as error:
                error.add_note(f"case {number} of {kind}")
                raise
            shutil.rmtree(folder)
            counts["refused" if refused else "read"] += 1
    return counts


def main() -> None:
    """The command line."""
    first, last, *kinds = sys.argv[1:]
    print(json.dumps({kind: counts_of(kind, range(int(first), int(last))) for kind in kinds}))


if __name__ == "__main__":
    main()
