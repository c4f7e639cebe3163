"""The order in which programs run, and the cases there are."""

import itertools

from benchmarks.peers.cases import CASES, turns
from benchmarks.peers.peer import PEERS
from benchmarks.peers.work import SIZES


def test_in_pairs_the_baseline_runs_before_each_run_of_another():
    order = list(turns("diffusers", ["openvino", "sdjax"], 2, in_pairs=True))
    assert order == ["diffusers", "openvino"] * 2 + ["diffusers", "sdjax"] * 2


def test_otherwise_the_baseline_begins_each_round():
    order = list(turns("diffusers", ["openvino", "sdjax"], 2, in_pairs=False))
    assert order == ["diffusers", "openvino", "sdjax"] * 2


def test_cases_name_programs_and_sizes_that_there_are():
    for case in CASES.values():
        assert {case.baseline, *case.peers} <= PEERS.keys()
        for work in itertools.chain(case.works, case.small):
            assert len(work.sizes) == len(SIZES[work.kind])
