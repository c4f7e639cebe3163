"""docs/performance.md has the tables of docs/performance.json."""

import json

from benchmarks.peers.cases import CASES
from benchmarks.peers.page import PAGE, PICTURE, RESULTS, with_tables
from benchmarks.peers.tables import case_table

MACHINE = {
    "processor": "Some processor",
    "instruction_sets": ["avx2", "fma"],
    "cores": 2,
    "system": "Linux",
    "load": 0.1,
    "revision": "abc",
    "versions": {"torch": "2.0"},
}


def row(seconds: float, times: float) -> dict[str, object]:
    return {
        "seconds": seconds,
        "times_as_fast": times,
        "times_as_fast_by_cpu_seconds": times,
        "peak_bytes": 2 * 10**9,
        "difference": 1e-6 if times != 1 else 0.0,
    }


def case(baseline: str, *works: dict[str, object]) -> dict[str, object]:
    return {"title": "A case", "baseline": baseline, "rounds": 5, "machine": MACHINE, "works": works}


def test_the_page_has_what_was_measured():
    text = PAGE.read_text("utf-8")
    assert with_tables(text, json.loads(RESULTS.read_text())) == text, "python -m benchmarks.peers.page writes it"
    assert all(f"<!-- peers: {name} -->" in text for name in CASES)
    assert PICTURE.is_file() and f"images/{PICTURE.name}" in text


def test_a_table_says_how_and_on_what_it_was_measured():
    work = {"kind": "image", "sizes": [20, 64, 4, 32]}
    result = {"work": work, "operations": None, "peers": {"diffusers": row(4, 1), "sdjax": row(2, 2)}}
    table = case_table({"embedded": case("diffusers", result)}, "embedded")
    assert "`python -m benchmarks.peers --only embedded`; medians of 5 rounds on Some processor, 2 cores (avx2" in table
    assert "| 64 x 64, 20 steps, batch 4 | sdjax | 16 images/s | 2.00 | 2.00 | 2.00 GB | 1.0e-06 |" in table


def test_parts_stand_side_by_side_with_their_rates():
    works = [
        {
            "work": {"kind": "product", "sizes": [rows, 10, 10]},
            "operations": 10**9,
            "peers": {"torch": row(0.01, 1), "sdjax": row(0.02, 0.5)},
        }
        for rows in (8, 9)
    ]
    table = case_table({"product": case("torch", *works)}, "product")
    assert "| 8 x 10 x 10 | 10 ms (100 GFLOP/s) | 20 ms (50 GFLOP/s) | 0.50 |" in table


def test_a_case_that_was_not_measured_says_so():
    assert case_table({}, "unet") == "Not measured yet.\n"
