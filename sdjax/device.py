"""What of a device decides bits, and how programs are compiled for it."""

import functools
import os
import platform
import re
from collections.abc import Mapping

import jax

# How programs are compiled, by platform. On the CPU sums over a picture, as in a group norm, are left out of what XLA
# gives to YNNPACK: that splits them by the number of threads, which follows the number of devices and of cores, and so
# the bits would. Matrix products and convolutions stay with it: Eigen, the other choice, splits these by threads too
# (`sdjax.models.convolution` has the rest of this).
COMPILER_OPTIONS: Mapping[str, Mapping[str, str | bool]] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    },
    "gpu": {"xla_gpu_exclude_nondeterministic_ops": True},
}
# Features by which XLA and its libraries choose among kernels that round differently.
_CPU_FEATURES = ("fma", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "bf16", "sve")


def device_kind(device: jax.Device) -> str:
    """What of a device decides bits; for a CPU also its instruction set, which JAX leaves out."""
    if device.platform != "cpu":
        return device.device_kind
    found = [name for name in _CPU_FEATURES if name in _cpu_flags()]
    limit = re.search(r"xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
    parts = [device.device_kind, platform.machine(), *found, *(limit.groups() if limit else ())]
    return " ".join(part for part in parts if part)


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """The features that Linux lists; none elsewhere."""
    try:
        with open("/proc/cpuinfo") as stream:
            lines = [line for line in stream if line.startswith(("flags", "Features"))]
    except OSError:
        return frozenset()
    return frozenset(lines[0].split(":", 1)[1].split()) if lines else frozenset()
