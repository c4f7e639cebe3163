"""Files that torch writes now, in both formats and all protocols, come out as they went in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdjax.checkpoints.pickled import read_pickle
from sdjax.checkpoints.tensors import Tensor, read_tensor

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch", reason="needs torch: make parity")
pickle_reference = pytest.importorskip("tests.golden.pickle_reference", reason="needs torch", exc_type=ImportError)


def same(found: Any, expected: Any) -> None:
    """Compares what was read with what was saved."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, Tensor) and found.shape == tuple(expected.shape)
        values = expected.detach().double().numpy()
        np.testing.assert_array_equal(read_tensor(found).astype(np.float64), values)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read(zipped: bool, protocol: int, tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 5).half())
    optimizer = torch.optim.AdamW(layers.parameters())
    layers[0].weight.grad = torch.ones_like(layers[0].weight)
    optimizer.step()
    tied = torch.randn(6, 5)
    content = {
        "state_dict": layers.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "kinds": pickle_reference.tensors(),
        "tied": [tied, tied, tied.T, tied[2:4, 1:], tied[1]],
        "step": 7,
        "name": "größe",
        "nested": ({1: 2.5, "a": None}, [True, "x", -3]),
    }
    file = tmp_path / "a.pt"
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    same(read_pickle(file), content)
