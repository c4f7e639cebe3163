"""On what was measured, and with which versions."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.peer import processor_flags, threads

# Those by which programs choose among kernels.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")
_PACKAGES = ("sdjax", "jax", "jaxlib", "torch", "diffusers", "openvino", "stable-diffusion-cpp-python")


def machine() -> dict[str, Any]:
    """The processor and its load, memory, system and versions."""
    flags = processor_flags()
    return {
        "processor": _processor(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "cores": threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
        "revision": _revision(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor()


def _version(package: str) -> str | None:
    if package == "sdjax":
        from sdjax.version import __version__

        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The commit that was measured, with "-dirty" if files were changed since."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*")
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
