"""Tensors of original single files, of which no file exists."""

from pathlib import Path

from sdjax.checkpoints.tensors import Tensor
from tests.golden import checkpoints

FILE = Path("model.safetensors")


def listed(*names: str, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict[str, Tensor]:
    return {name: Tensor(FILE, name, shape, dtype, 0) for name in names}


def toy(variant: str) -> dict[str, Tensor]:
    shapes = checkpoints.original(variant, "toy").shapes
    return {name: Tensor(FILE, name, shape, "F16", 0) for name, shape in shapes.items()}
