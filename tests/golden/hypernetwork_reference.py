"""Records hypernetworks.npz with torch.

    python -m tests.golden.hypernetwork_reference      (in the environment of `make parity`)

Nothing here comes from sdjax: the layers are torch's own, the files are written by `torch.save` as by A1111's
`Hypernetwork.save`.
"""

import io
import itertools
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch.nn.modules import activation

from tests.golden import hypernetworks as golden

# A1111's names that are not those of torch's classes.
_OTHER_NAMES = {"linear": "Identity", "swish": "Hardswish"}
# Classes of torch's that are no function of one value, or need arguments.
_NO_FUNCTION = {"GLU", "LogSoftmax", "MultiheadAttention", "PReLU", "Softmax", "Softmax2d", "Softmin", "Threshold"}


def activations() -> dict[str, type[torch.nn.Module]]:
    """The classes by A1111's names."""
    classes = {
        name.lower(): each
        for name, each in vars(activation).items()
        if isinstance(each, type) and each.__module__ == activation.__name__ and name not in _NO_FUNCTION
    }
    return classes | {name: getattr(torch.nn, each) for name, each in _OTHER_NAMES.items()}


def network(case: golden.Case, width: int) -> torch.nn.Sequential:
    """One of a hypernetwork's networks with random weights."""
    structure = case.options.get("layer_structure", [1, 2, 1])
    chosen = case.options.get("activation_func")
    layers: list[torch.nn.Module] = []
    for number, (inner, outer) in enumerate(itertools.pairwise(structure)):
        layers.append(torch.nn.Linear(int(width * inner), int(width * outer)))
        last = number == len(structure) - 2
        if chosen not in (None, "linear") and (not last or case.options.get("activate_output", True)):
            layers.append(activations()[chosen]())
        if case.options.get("is_layer_norm"):
            layers.append(torch.nn.LayerNorm(int(width * outer)))
        if case.dropout and case.dropout[number + 1]:
            layers.append(torch.nn.Dropout(case.dropout[number + 1]))
    whole = torch.nn.Sequential(*layers).eval()
    for values in whole.parameters():
        torch.nn.init.normal_(values, std=0.5)
    return whole.half().float() if case.half else whole


def state(case: golden.Case, whole: torch.nn.Sequential) -> OrderedDict[str, torch.Tensor]:
    """Its tensors under the names in the file."""
    prefix = torch.nn.ModuleDict({"linear": whole})
    tensors = prefix.state_dict()
    if case.half:
        tensors = OrderedDict((name, tensor.half()) for name, tensor in tensors.items())
    if case.old_names:
        # linear.0 was called linear1, linear.1 linear2.
        tensors = OrderedDict(
            (f"linear{int(name.split('.')[1]) + 1}.{name.split('.')[2]}", tensor) for name, tensor in tensors.items()
        )
    return tensors


def written(case: golden.Case) -> tuple[bytes, dict[tuple[str, int], torch.nn.Sequential]]:
    """A file, and the networks in it."""
    networks = {(part, width): network(case, width) for width in golden.WIDTHS for part in "kv"}
    content: dict[Any, Any] = {
        width: tuple(state(case, networks[part, width]) for part in "kv") for width in golden.WIDTHS
    }
    content |= {"step": 1000, "name": "toy", "sd_checkpoint": "abcdef12", "sd_checkpoint_name": None, **case.options}
    if case.dropout:
        content["dropout_structure"] = list(case.dropout)
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=case.zipped)
    return stream.getvalue(), networks


def output(whole: torch.nn.Sequential, x: np.ndarray, multiplier: float) -> np.ndarray:
    """What attention gets instead of `x`."""
    with torch.no_grad():
        given = torch.from_numpy(x)
        return (given + whole(given) * multiplier).numpy()


def main() -> None:
    """Records them all."""
    torch.manual_seed(0)
    points = torch.from_numpy(golden.POINTS)
    arrays = {f"activation {name}": each().eval()(points).numpy() for name, each in activations().items()}
    for name, case in golden.CASES.items():
        data, networks = written(case)
        arrays[f"file {name}"] = np.frombuffer(data, np.uint8)
        for (part, width), whole in networks.items():
            arrays[f"output {name} {part} {width}"] = output(whole, golden.inputs(width), golden.MULTIPLIER)
    np.savez_compressed(golden.FILE, **arrays)


if __name__ == "__main__":
    main()
