"""What of a device decides bits, and how programs are compiled for it."""

import functools
import platform
from collections.abc import Callable, Mapping
from typing import Any

import jax

# How programs are compiled whose bits are promised, by platform. On the CPU sums over an image, as in a group norm,
# are left out of what XLA gives to YNNPACK: that splits them by the number of threads, which follows the number of
# devices and of cores, and so the bits would. Matrix products and convolutions stay with it: Eigen, the other choice,
# splits these by threads too (`sdjax.models.convolution` has the rest of this).
_COMPILER_OPTIONS: Mapping[str, Mapping[str, str | bool]] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    },
    "gpu": {"xla_gpu_exclude_nondeterministic_ops": True},
}
# Features by which XLA and its libraries choose among kernels that round differently.
_CPU_FEATURES = ("fma", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "bf16", "sve")


def compiler_options(platform: str) -> dict[str, str | bool]:
    """With what programs for a platform are compiled, so that their bits do not depend on threads, or on the run."""
    return dict(_COMPILER_OPTIONS.get(platform, {}))


@functools.lru_cache(maxsize=64)
def program_for(platform: str, function: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    """A function as a program for a platform, compiled for each shape of what it is given.

    Args:
      platform: as devices name it.
      function: pure, of `settings` and then of arrays.
      settings: its first arguments, hashable.
    """
    program = as_function(functools.partial(function, *settings))
    return jax.jit(program, compiler_options=compiler_options(platform))


def as_function(partial: Callable[..., Any]) -> Callable[..., Any]:
    """A partial function as a plain one: of a partial one JAX takes the repr, with every array of a model in it."""

    def program(*arrays: Any) -> Any:
        return partial(*arrays)

    return program


def platform_of(params: Any) -> str:
    """The platform on which programs of these parameters run."""
    leaf = jax.tree.leaves(params)[0]
    return next(iter(leaf.devices())).platform if isinstance(leaf, jax.Array) else jax.default_backend()


def device_kind(device: jax.Device) -> str:
    """What of a device decides bits; for a CPU also its instruction set, which JAX leaves out."""
    if device.platform != "cpu":
        return device.device_kind
    found = [name for name in _CPU_FEATURES if name in _cpu_flags()]
    return " ".join(part for part in (device.device_kind, platform.machine(), *found) if part)


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """The features that Linux lists; none elsewhere."""
    try:
        with open("/proc/cpuinfo") as stream:
            lines = [line for line in stream if line.startswith(("flags", "Features"))]
    except OSError:
        return frozenset()
    return frozenset(lines[0].split(":", 1)[1].split()) if lines else frozenset()
