"""Records files of tensors as torch pickles them, and what is in them by torch's own account.

The files lie in tests/golden/pickles; `values.npz` holds each tensor by "case/name".
"""

import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).with_name("pickles")

_KINDS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.uint64,
    torch.int32,
    torch.uint32,
    torch.int16,
    torch.uint16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def tensors() -> dict[str, torch.Tensor]:
    """Tensors of all kinds of numbers and all ways to lie in a storage."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn((4, 3, 2), generator=generator)
    found = {str(kind).removeprefix("torch."): (whole[0].abs() * 9).to(kind) for kind in _KINDS}
    found |= {
        "whole": whole,
        "transposed": whole.transpose(0, 2),
        "sliced": whole[1:3, ::2],
        "channels_last": torch.randn((2, 3, 4, 5), generator=generator).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(whole[0]),
    }
    return found


def lightning() -> dict[str, Any]:
    """What the trainer of Stable Diffusion 1 leaves in a checkpoint; its classes are stood in for."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name, "__qualname__": "ModelCheckpoint"})
    module.ModelCheckpoint = kind  # type: ignore[attr-defined]
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    sys.modules[name] = module
    state = torch.nn.Sequential(OrderedDict(model=torch.nn.Linear(2, 3))).state_dict()
    return {
        "epoch": 6,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "callbacks": {kind: {"monitor": "val/loss", "best_model_score": np.float64(0.25), "current": np.ones(2)}},
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
    }


def record() -> None:
    """Writes the files and the values."""
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    cases = {
        "kinds": tensors(),
        "lightning": lightning(),
        "parameter_dict": {
            "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.randn(2, 4))}),
            "string_to_token": {"*": 265},
            "size": torch.Size([2, 4]),
            "device": torch.device("cpu"),
            "kind": torch.float32,
            "pair": (1, [2.5, None, True]),
        },
    }
    # The older format brings along the source of classes of modules, which is torch's own and not for here.
    torch.serialization.get_source_lines_and_file = lambda kind: ([""], 0, "")  # type: ignore[attr-defined]
    for case, content in cases.items():
        for form, zipped in (("zip", True), ("older", False)):
            torch.save(content, FOLDER / f"{case}_{form}.pt", _use_new_zipfile_serialization=zipped)
    values = {f"kinds/{name}": tensor.detach().double().numpy() for name, tensor in cases["kinds"].items()}
    values |= {f"lightning/{name}": tensor.numpy() for name, tensor in cases["lightning"]["state_dict"].items()}
    values["parameter_dict/string_to_param.*"] = cases["parameter_dict"]["string_to_param"]["*"].detach().numpy()
    np.savez_compressed(FOLDER / "values.npz", **values)


if __name__ == "__main__":
    record()
