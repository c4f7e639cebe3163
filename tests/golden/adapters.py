"""Adapters that other libraries wrote and applied to the toys: the cases, and what sdjax makes of such a file.

The files themselves are recorded, and of what the other library made of them a part of all numbers: of each merged
parameter some elements, and of what the networks then give.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax.adapters.lora import Lora, changed, read_lora, replaced
from sdjax.checkpoints import name_table
from sdjax.families.stable_diffusion import SD1
from tests import toys
from tests.golden import networks

Arrays = dict[str, np.ndarray]

RECORDED = Path(__file__).parent / "adapters_lora.npz"
# The largest relative errors: of merged parameters, and of what networks give.
WEIGHTS_TOLERANCE = 1e-6
OUTPUTS_TOLERANCE = 1e-5
# Of recorded weights against those that the same library merges now. A merged weight is a sum of products over the
# rank, of factors that are products themselves: some roundings of 6e-8 each, in an order that depends on the processor
# (1.1e-6 was seen between two of them).
RECORDED_WEIGHTS_TOLERANCE = 4e-6
TOYS = {"sd1": toys.SD1, "sd2": toys.SD2}


class Case(NamedTuple):
    """An adapter.

    toy: the model that it is for.
    writer: the library that makes, writes and applies it.
    options: of that library.
    part: the network it is for, where the library only takes one.
    weight: with which it is applied; at others than 1, libraries differ in DoRA.
    ending: of lycoris' file.
    dtype: of lycoris' file.
    """

    toy: str
    writer: str
    options: Mapping[str, Any]
    part: str | None = None
    weight: float = 1.0
    ending: str = ".safetensors"
    dtype: str = "float16"


CASES: dict[str, Case] = {
    "lora and locon": Case("sd1", "lycoris", {"network_module": "locon", "alpha": 2, "conv_alpha": 1}),
    "locon by tucker": Case(
        "sd1", "lycoris", {"network_module": "locon", "use_tucker": True}, weight=0.7, dtype="bfloat16"
    ),
    "dora": Case("sd2", "lycoris", {"network_module": "locon", "weight_decompose": True}),
    "dora by inputs": Case("sd1", "lycoris", {"network_module": "locon", "weight_decompose": True, "wd_on_out": False}),
    "loha": Case(
        "sd1",
        "lycoris",
        {"network_module": "loha", "alpha": 2, "use_scalar": True},
        weight=-0.4,
        ending=".pt",
        dtype="float32",
    ),
    "loha by tucker, dora": Case(
        "sd2", "lycoris", {"network_module": "loha", "use_tucker": True, "weight_decompose": True}
    ),
    "lokr": Case(
        "sd1", "lycoris", {"network_module": "lokr", "lora_dim": 1, "conv_lora_dim": 1, "alpha": 0.5}, weight=0.3
    ),
    "lokr of two products": Case(
        "sd2",
        "lycoris",
        {"network_module": "lokr", "lora_dim": 1, "conv_lora_dim": 1, "decompose_both": True, "factor": 4},
        weight=0.3,
    ),
    "lokr by tucker": Case(
        "sd2", "lycoris", {"network_module": "lokr", "lora_dim": 1, "conv_lora_dim": 1, "use_tucker": True}, weight=0.2
    ),
    "lokr whole, dora": Case(
        "sd1", "lycoris", {"network_module": "lokr", "full_matrix": True, "weight_decompose": True}
    ),
    "full differences and norms": Case("sd1", "lycoris", {"network_module": "full", "train_norm": True}, weight=0.5),
    "peft": Case(
        "sd1", "peft", {"r": 3, "lora_alpha": 5, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 7}}, "unet"
    ),
    "peft with bias, text": Case("sd2", "peft", {"r": 2, "lora_alpha": 3, "lora_bias": True}, "text_encoder", 0.6),
    "peft dora, rank-stabilised": Case(
        "sd2", "peft", {"r": 4, "lora_alpha": 3, "use_dora": True, "use_rslora": True}, "unet"
    ),
    "peft loha": Case(
        "sd1", "peft", {"kind": "loha", "r": 2, "alpha": 3, "use_effective_conv2d": True}, "unet", weight=0.5
    ),
    "peft lokr": Case("sd2", "peft", {"kind": "lokr", "r": 2, "alpha": 3}, "unet", weight=0.2),
    "diffusers": Case("sd1", "diffusers", {"r": 3, "lora_alpha": 5}, weight=0.8),
    "diffusers without alpha": Case("sd2", "diffusers", {"r": 3, "lora_alpha": 3, "metadata": False}),
    "diffusers formerly": Case("sd1", "diffusers", {"r": 2, "lora_alpha": 2, "metadata": False, "former": True}),
}


@functools.cache
def toy_params(toy: str) -> Mapping[str, Any]:
    """The weights of a toy."""
    return toys.toy_params(TOYS[toy])


def read(case: Case, file: Path) -> Lora:
    """The case's adapter, as sdjax reads it."""
    toy = TOYS[case.toy]
    return read_lora(file, {"unet": toy.unet, "text_encoder": toy.text_encoder}, pickled=True)


def changed_by(cases: Sequence[tuple[Case, Lora]]) -> list[dict[name_table.Path, jax.Array]]:
    """The parameters that each of some adapters changes, all by one compiled program: so it takes the least time."""

    def program(toys_: Mapping[str, Any], changes: list[Any]) -> list[Any]:
        return [
            changed(toys_[case.toy], [each], [{"unet": case.weight, "text_encoder": case.weight}])
            for (case, _), each in zip(cases, changes, strict=True)
        ]

    params = {case.toy: toy_params(case.toy) for case, _ in cases}
    return jax.jit(program)(params, [lora.changes for _, lora in cases])


def given(case: Case, leaves: Mapping[name_table.Path, jax.Array]) -> tuple[Arrays, Arrays]:
    """What sdjax makes of an adapter: the changed parameters under torch's names and in its layout, and the outputs."""
    toy, params = TOYS[case.toy], replaced(dict(toy_params(case.toy)), leaves)
    merged = {torch_name(path): name_table.to_file(path, np.asarray(leaf)) for path, leaf in leaves.items()}
    outputs = {}
    for part, config in (("unet", toy.unet), ("text_encoder", toy.text_encoder)):
        if any(path[0] == part for path in leaves):
            found = networks.outputs(networks.Network(config, functools.partial(params.__getitem__, part)))
            outputs[part] = found["prediction" if part == "unet" else "last_hidden_state"]
    return merged, outputs


def torch_name(path: tuple[str, ...]) -> str:
    """The network, and its parameter as the module of torch calls it."""
    part, *rest = path
    table = SD1.networks[part].table
    return f"{part}.{name_table.file_names(tuple(rest), table)[0].removeprefix(table.prefix)}"


def sampled(arrays: Arrays) -> np.ndarray:
    """Some elements of each array, in the order of their names."""
    return np.concatenate([arrays[name].ravel()[:: 1 + arrays[name].size // 48] for name in sorted(arrays)])


class Recorded(NamedTuple):
    """What is stored of a case: the files by their names, and `sampled` numbers of the other library."""

    files: dict[str, bytes]
    merged: np.ndarray
    outputs: np.ndarray


@functools.cache
def recorded() -> dict[str, Recorded]:
    """All that is stored."""
    with np.load(RECORDED) as stored:
        arrays = dict(stored)
    return {
        name: Recorded(
            {key.split("/")[2]: arrays[key].tobytes() for key in arrays if key.startswith(f"{name}/file/")},
            arrays[f"{name}/merged"],
            arrays[f"{name}/outputs"],
        )
        for name in CASES
    }


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Writes recorded files; gives the adapter's."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return next(folder / name for name in files if not name.endswith(".json"))
