"""Live comparison of hypernetworks with torch's layers: structures drawn at random, files written by torch."""

import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters.hypernetwork import ACTIVATIONS, network, read_hypernetwork
from tests.golden import hypernetworks as golden

pytestmark = pytest.mark.parity

reference = pytest.importorskip(
    "tests.golden.hypernetwork_reference", reason="needs torch: make parity", exc_type=ImportError
)


def test_all_of_torchs_functions_are_there() -> None:
    assert {*ACTIVATIONS, "linear"} == set(reference.activations())


@pytest.mark.parametrize("seed", range(6))
def test_files_of_any_structure(tmp_path: Path, seed: int) -> None:
    chooser = random.Random(seed)
    structure = [1, *(chooser.choice([0.5, 1, 1.5, 2, 3]) for _ in range(chooser.randrange(3))), 1]
    options = {
        "layer_structure": structure,
        "activation_func": chooser.choice([*sorted(ACTIVATIONS), "linear", None]),
        "is_layer_norm": chooser.random() < 0.5,
        "activate_output": chooser.random() < 0.5,
    }
    dropout = (0, *(chooser.choice([0, 0.3]) for _ in structure[2:]), 0)
    data, networks = reference.written(golden.Case(options, dropout, zipped=chooser.random() < 0.7))
    file = tmp_path / "file.pt"
    file.write_bytes(data)
    read = read_hypernetwork(file, pickled=True)
    for (part, width), whole in networks.items():
        x = golden.inputs(width)
        with jax.default_matmul_precision("highest"):
            given = x + np.asarray(network(read.structure, read.params[width][part], jnp.asarray(x)))
        np.testing.assert_allclose(given, reference.output(whole, x, 1.0), rtol=1e-4, atol=1e-4)
