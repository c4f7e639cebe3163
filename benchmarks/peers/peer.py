"""The programs that are compared."""

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.work import Work

# Does work, and gives what comes out, channels last: floats of the network, bytes of images.
Run = Callable[[Work], np.ndarray]


class Peer(NamedTuple):
    """A program.

    label: how tables name it.
    module: whose `prepare(work, model, build, **options) -> Run` loads the diffusers folder `model` for such work, and
      keeps what it converts in the folder `build`.
    packages: what must be installed, by the names under which it is imported.
    options: of `prepare`.
    instructions: one of these the processor must have; empty if any will do.
    """

    label: str
    module: str
    packages: tuple[str, ...]
    options: Mapping[str, Any] = {}
    instructions: tuple[str, ...] = ()

    def prepare(self, work: Work, model: Path, build: Path) -> Run:
        """Loads the model in this process."""
        module = importlib.import_module(f"benchmarks.peers.{self.module}")
        return module.prepare(work, model, build, **self.options)


_TORCH = ("torch", "diffusers", "transformers")
PEERS: Mapping[str, Peer] = {
    "diffusers": Peer("diffusers, eager", "diffusers_peer", _TORCH),
    "channels_last": Peer("diffusers, channels last", "diffusers_peer", _TORCH, {"channels_last": True}),
    "compiled": Peer("diffusers, compiled", "diffusers_peer", _TORCH, {"channels_last": True, "compiled": True}),
    "openvino": Peer("OpenVINO, f32", "openvino_peer", (*_TORCH, "openvino"), {"precision": "f32"}),
    "openvino_bf16": Peer(
        "OpenVINO, bf16",
        "openvino_peer",
        (*_TORCH, "openvino"),
        {"precision": "bf16"},
        ("avx512_bf16", "amx_bf16"),
    ),
    "sdcpp": Peer("stable-diffusion.cpp", "sdcpp_peer", ("stable_diffusion_cpp",)),
    "torch": Peer("torch, channels last", "torch_parts", ("torch",)),
    "sdjax": Peer("sdjax", "sdjax_peer", ("jax",)),
}


def obstacle(peer: Peer) -> str | None:
    """Why a program can't be run here; None if it can."""
    missing = [name for name in peer.packages if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if peer.instructions and not set(peer.instructions) & processor_flags():
        return f"the processor has none of {', '.join(peer.instructions)}"
    return None


def processor_flags() -> frozenset[str]:
    """The instruction sets of the processor as Linux names them; none elsewhere."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()


def threads() -> int:
    """How many processors this process may use, which is how many threads each program is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
