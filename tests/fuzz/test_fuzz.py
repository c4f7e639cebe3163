"""Hostile input of every kind is read or refused: no crash, no traceback, no hang, no more memory than due."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
KINDS = sorted(file.stem for file in (Path(__file__).parent / "kinds").glob("*.py") if file.stem != "__init__")
# Of all cases of a run together: what hangs in another library's code can't be interrupted.
MOST_SECONDS = 3600


def fuzz(kinds: list[str], first: int, last: int) -> dict[str, dict[str, int]]:
    """How many cases of each kind were read, and how many refused; fails if one went otherwise."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", str(first), str(last), *kinds],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    counts: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    assert list(counts) == kinds
    for each in counts.values():
        assert sum(each.values()) == last - first and all(each.values()), counts
    return counts


def test_hostile_input_of_each_kind_is_read_or_refused():
    fuzz(KINDS, 0, 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_thousand_cases_are_read_or_refused(kind):
    start = time.monotonic()
    counts = fuzz([kind], 1000, 21_000)
    print(f"\n{kind}: {time.monotonic() - start:.0f} s, {counts[kind]}")
