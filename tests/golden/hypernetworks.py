"""Hypernetworks as A1111 writes them, and what torch's own layers make of inputs.

Recorded in hypernetworks.npz by `tests.golden.hypernetwork_reference`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("hypernetworks.npz")

WIDTHS = (4, 6)
MULTIPLIER = 0.7


@dataclasses.dataclass(frozen=True)
class Case:
    """A file: what training was asked for, and how it is written.

    options: A1111's own words; what is not said is not in the file.
    dropout: chances of each layer, which count for nothing but numbers of layers.
    """

    options: dict[str, Any]
    dropout: tuple[float, ...] = ()
    half: bool = False
    zipped: bool = True
    old_names: bool = False


CASES = {
    "linear": Case({"layer_structure": [1, 2, 1], "activation_func": "linear", "is_layer_norm": False}),
    "of the first days": Case({}, old_names=True, zipped=False),
    "of the second days": Case({"layer_structure": [1, 2, 1], "activation_func": "relu"}),
    "all of it": Case(
        {
            "layer_structure": [1, 2, 2, 1],
            "activation_func": "mish",
            "is_layer_norm": True,
            "activate_output": True,
            "last_layer_dropout": True,
            "use_dropout": True,
        },
        dropout=(0, 0.3, 0.3, 0),
    ),
    "last layer as it is": Case(
        {"layer_structure": [1, 1.5, 0.5, 1], "activation_func": "swish", "activate_output": False}, half=True
    ),
    "normalised only": Case({"layer_structure": [1, 3, 1], "activation_func": None, "is_layer_norm": True}),
}

# Inputs of activation functions, at their corners among them.
POINTS = np.concatenate([np.linspace(-8, 8, 65), [-0.5, 0.5, -3.0, 6.0, -30.0, 30.0]]).astype(np.float32)


def inputs(width: int) -> np.ndarray:
    """What goes into networks of a width: (batch, tokens, width)."""
    return np.random.RandomState(width).standard_normal((2, 3, width)).astype(np.float32)


def recorded() -> dict[str, np.ndarray]:
    """ "activation NAME", "file CASE" (its bytes), and "output CASE k|v WIDTH"."""
    with np.load(FILE) as arrays:
        return {name: arrays[name] for name in arrays.files}
