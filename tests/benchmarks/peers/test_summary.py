"""Medians, ratios and differences of what was measured."""

import numpy as np
import pytest

from benchmarks.peers.children import Measurement
from benchmarks.peers.summary import difference, summarized


def run(seconds: float, cpu_seconds: float = 1.0, peak: int = 10) -> Measurement:
    return Measurement(seconds, cpu_seconds, peak, None)


def test_each_run_is_compared_with_the_run_of_the_baseline_before_it():
    turns = [
        ("diffusers", run(2)),
        ("sdjax", run(1)),
        ("diffusers", run(30)),  # the machine was busy
        ("sdjax", run(10)),
        ("diffusers", run(2)),
        ("sdjax", run(1)),
    ]
    row = summarized(turns, "diffusers")["sdjax"]
    assert row["times_as_fast"] == 2 and row["seconds"] == 1 and row["all_seconds"] == [1, 10, 1]


def test_a_baseline_that_runs_once_a_round_is_that_of_all_after_it():
    turns = [("diffusers", run(4)), ("openvino", run(2)), ("sdjax", run(1))]
    rows = summarized(turns, "diffusers")
    assert [row["times_as_fast"] for row in rows.values()] == [1, 2, 4]


def test_processor_time_is_compared_likewise_and_memory_is_the_most():
    turns = [("diffusers", run(1, 6)), ("sdjax", run(1, 3, peak=5)), ("diffusers", run(1, 8)), ("sdjax", run(1, 2, 7))]
    row = summarized(turns, "diffusers")["sdjax"]
    assert row["times_as_fast_by_cpu_seconds"] == 3 and row["peak_bytes"] == 7


def test_the_difference_is_a_share_of_the_largest_value(tmp_path):
    for name, values in (("a", [1.0, -8.0]), ("b", [1.5, -10.0]), ("c", [1.0])):
        np.save(tmp_path / f"{name}.npy", np.array(values))
    assert difference(tmp_path / "a.npy", tmp_path / "b.npy") == 0.2
    with pytest.raises(ValueError, match="expected the same"):
        difference(tmp_path / "a.npy", tmp_path / "c.npy")
