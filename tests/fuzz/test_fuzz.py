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

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def fuzz(kind: str, first: int, last: int) -> dict[str, int]:
    """How many cases were read, and how many refused; fails if one went otherwise."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", kind, str(first), str(last)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts.values()) == last - first and all(counts.values()), counts
    return counts


@EVERY_KIND
def test_hostile_input_is_read_or_refused(kind):
    fuzz(kind, 0, 60)


@pytest.mark.slow
@EVERY_KIND
def test_twenty_thousand_cases_are_read_or_refused(kind):
    start = time.monotonic()
    counts = fuzz(kind, 1000, 21_000)
    print(f"\n{kind}: {time.monotonic() - start:.0f} s, {counts}")
