"""What an engine makes in processes of their own, each with one setting flipped.

As a program: `python -m tests.flips MODEL`, with flips as JSON on stdin; a line for each on stdout. All is imported
once, before JAX starts its backend, and each flip is a fork of that, so that it costs what compiling costs.
"""

import enum
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

import sdjax
from sdjax.engine import xla_settings
from sdjax.engine.engine import Engine

JOBS = {
    "device": dict(sampler="euler_ancestral", noise_source="threefry"),
    "host": dict(sampler="dpmpp_2m_sde", noise_source="torch"),
}


class Flip(NamedTuple):
    """One setting, before JAX starts.

    kind: "jax" for a setting, "variable" of the environment, or "none".
    jobs: a key of `JOBS`.
    """

    kind: str
    name: str = ""
    value: Any = None
    jobs: str = "device"


class Made(NamedTuple):
    """What became of it: `error` if nothing could be made."""

    ids: str = ""
    bits: str = ""
    error: str = ""


# Values that are not the default and may be set, where the default's type does not say one.
_VALUES: Mapping[str, Any] = {
    "jax_compilation_cache_dir": None,  # filled in by a folder of the test
    "jax_cpu_collectives_implementation": "mpi",
    "jax_debug_log_modules": "jax",
    "jax_default_matmul_precision": "bfloat16",
    "jax_default_prng_impl": "rbg",
    "jax_error_checking_behavior_divide": "raise",
    "jax_error_checking_behavior_nan": "raise",
    "jax_error_checking_behavior_oob": "raise",
    "jax_explicit_x64_dtypes": "allow",
    "jax_hlo_source_file_canonicalization_regex": ".*",
    "jax_legacy_prng_key": "error",
    "jax_logging_level": "ERROR",
    "jax_memory_fitting_level": "O1",
    "jax_num_cpu_devices": 4,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "warn",
    "jax_optimization_level": "O1",
    "jax_platforms": "cpu",
    "jax_send_traceback_to_runtime": "full",
    "jax_traceback_filtering": "off",
    "jax_use_magma": "off",
    "jax_array_garbage_collection_guard": "log",
    "jax_transfer_guard": "log",
    "jax_transfer_guard_device_to_device": "log",
    "jax_transfer_guard_device_to_host": "log",
    "jax_transfer_guard_host_to_device": "log",
}


def flipped(name: str) -> Any:
    """A value of one of JAX's settings that it does not have, or None if none can be told."""
    now = jax.config.values[name]
    if name in _VALUES:
        return _VALUES[name]
    if isinstance(now, bool):
        return not now
    if isinstance(now, int | float):
        return now + 1
    return None if now is None or isinstance(now, enum.Enum) else "0"


# Those that are not on the list of settings without a say, and of which no other value is known: they are written into
# the fingerprint as soon as they have one.
NOT_FLIPPED = ("jax_pjrt_client_create_options",)


def _made(model: str, flip: Flip, base: Mapping[str, str]) -> Made:
    """Runs in the process of a flip; the bits are made only where the ids do not tell it from the plain one."""
    if flip.kind == "jax":
        jax.config.update(flip.name, flip.value)
    elif flip.kind == "variable":
        os.environ[flip.name] = flip.value
    engine = Engine(sdjax.load(model), batch_size=1, devices=jax.devices()[:1])
    job = sdjax.Job(prompt="a red apple", seed=3, steps=3, width=64, height=64, **JOBS[flip.jobs])
    task = engine.prepare(job)
    if base.get(flip.jobs) not in (None, task.id):
        return Made(task.id)
    [result] = engine.run([task])
    return Made(task.id, hashlib.sha256(result.image.tobytes()).hexdigest())


def _forked(model: str, flip: Flip, base: Mapping[str, str]) -> Made:
    ours, theirs = os.pipe()
    if child := os.fork():
        os.close(theirs)
        with os.fdopen(ours) as stream:
            said = stream.read()
        _, status = os.waitpid(child, 0)
        return Made(*json.loads(said)) if said else Made(error=f"the process ended with {status}")
    try:
        made = _made(model, flip, base)
    except BaseException:
        made = Made(error=traceback.format_exc())
    os.write(theirs, json.dumps(made).encode())
    os._exit(0)


def listed_flips(folder: str) -> list[Flip]:
    """Of all of JAX's settings and of the flags and variables of XLA that are known to change bits, or not to."""
    jax_flips = [Flip("jax", name, flipped(name)) for name in sorted(jax.config.values)]
    jax_flips = [flip._replace(value=folder) if flip.name.endswith("_dir") else flip for flip in jax_flips]
    flags = (
        "--xla_cpu_enable_fast_math=true",
        "--xla_cpu_multi_thread_eigen=false",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_prefer_vector_width=128",
        "--xla_cpu_max_isa=AVX2",
        "--xla_force_host_platform_device_count=4",
        "--xla_cpu_parallel_codegen_split_count=1",
        f"--xla_dump_to={folder}",
    )
    return [flip for flip in jax_flips if flip.value is not None] + [
        Flip("variable", "XLA_FLAGS", flag) for flag in flags
    ]


def run_here(model: str, flips: Sequence[Flip], base: Mapping[str, str]) -> Iterable[Made]:
    """Forks one process after the other; this one must not have started a backend."""
    return (_forked(model, flip, base) for flip in flips)


def without_say() -> frozenset[str]:
    """JAX's settings that are said to decide no bits."""
    return frozenset(name for names in xla_settings.JAX_WITHOUT_SAY.values() for name in names)


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    for result in run_here(sys.argv[1], [Flip(*flip) for flip in asked["flips"]], asked["base"]):
        print(json.dumps(result), flush=True)
