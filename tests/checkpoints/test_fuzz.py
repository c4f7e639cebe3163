"""Every loader gives a clear error for every damaged file: no crash, no code run, no more memory and time than due."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
KINDS = {
    "safetensors",
    "pickled",
    "lora",
    "embedding",
    "hypernetwork",
    "checkpoint",
    "controlnet",
    "depth",
    "upscaler",
    "index",
}


def fuzz(first: int, last: int) -> dict[str, list[int]]:
    """How many files of each kind were read, and how many refused; fails if one case went otherwise."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.fuzz", str(first), str(last)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(counts: dict[str, list[int]], cases: int) -> None:
    assert sum(map(sum, counts.values())) == cases and counts.keys() == KINDS
    assert all(refused for _, refused in counts.values()), counts


def test_damaged_files_are_read_or_refused() -> None:
    check(fuzz(0, 200), 200)


@pytest.mark.slow
def test_twenty_thousand_damaged_files_are_read_or_refused() -> None:
    start = time.monotonic()
    counts = fuzz(1000, 21_000)
    print(f"\n{time.monotonic() - start:.0f} s; read and refused: {counts}")
    check(counts, 20_000)
