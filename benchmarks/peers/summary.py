"""Medians and ratios of what was measured."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.children import Measurement

# A program's name and one run of it.
Turn = tuple[str, Measurement]


def summarized(turns: Iterable[Turn], baseline: str) -> dict[str, dict[str, Any]]:
    """By program: medians of seconds and processor seconds, all seconds, the most memory, and how many times as fast it
    is as the baseline, which is the median of ratios, each to the run of the baseline before it.
    """
    runs: dict[str, list[Measurement]] = {}
    ratios: dict[str, list[tuple[float, float]]] = {}
    last: Measurement | None = None
    for name, found in turns:
        runs.setdefault(name, []).append(found)
        last = found if name == baseline else last
        assert last is not None, "the baseline begins"
        pair = last.seconds / found.seconds, last.cpu_seconds / found.cpu_seconds
        ratios.setdefault(name, []).append(pair)
    return {name: _row(found, ratios[name]) for name, found in runs.items()}


def _row(found: list[Measurement], ratios: list[tuple[float, float]]) -> dict[str, Any]:
    times_as_fast, by_cpu = zip(*ratios, strict=True)
    arrays = [run.array_bytes for run in found if run.array_bytes is not None]
    return {
        "seconds": _rounded(statistics.median(run.seconds for run in found)),
        "cpu_seconds": _rounded(statistics.median(run.cpu_seconds for run in found)),
        "times_as_fast": _rounded(statistics.median(times_as_fast)),
        "times_as_fast_by_cpu_seconds": _rounded(statistics.median(by_cpu)),
        "peak_bytes": max(run.peak_bytes for run in found),
        "array_bytes": max(arrays, default=None),
        "all_seconds": [_rounded(run.seconds) for run in found],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def difference(output: Path, reference: Path) -> float:
    """The largest difference of what a program gave from what another gave, as a share of the largest value there."""
    ours, theirs = (np.load(file).astype(np.float64) for file in (output, reference))
    if ours.shape != theirs.shape:
        raise ValueError(f"{output} is {ours.shape}, {reference} is {theirs.shape}: expected the same")
    return _rounded(float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
