"""Processes of programs, of sdjax itself, with the embedded model."""

import os

import numpy as np
import pytest

from benchmarks.peers.cases import EMBEDDED
from benchmarks.peers.children import Children
from benchmarks.peers.work import Work

PRODUCT = Work("product", (4, 3, 2))


@pytest.fixture
def children(tmp_path, monkeypatch):
    monkeypatch.chdir(os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__)))))
    with Children(EMBEDDED, tmp_path, alive=1) as children:
        yield children


def test_a_program_is_measured_and_what_it_gave_is_kept(children):
    found = children.run("sdjax", PRODUCT)
    assert found.seconds > 0 and found.peak_bytes > 10**7 and found.array_bytes
    assert np.load(children.output_of("sdjax")).shape == (4, 2)


def test_the_time_from_the_start_has_the_start_in_it(children):
    within = children.run("sdjax", PRODUCT).seconds
    assert children.started("sdjax", PRODUCT).seconds > 10 * within


def test_a_program_that_ends_early_names_its_log(children):
    with pytest.raises(RuntimeError, match=r"sdjax ended .* see .*sdjax\.log"):
        children.run("sdjax", Work("no such kind", ()))
    assert "no such kind" in (children.build / "sdjax.log").read_text()
