"""The settings of JAX, XLA and their libraries that are in force, as far as they may decide bits.

Three kinds. What this library pins is the same whatever is set outside (`pinned`). What is in the tables below decides
no bits, for the reason that stands there. All else goes into the fingerprint as soon as it is not JAX's own default, a
flag of which nobody has thought included. So plain runs have short fingerprints; and since the versions of JAX and
jaxlib are part of these too, a default that changes with a version is not lost.
"""

import contextlib
import enum
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

# JAX's settings (`jax.config.values`) that decide no bits, by the reason.
JAX_WITHOUT_SAY: Mapping[str, tuple[str, ...]] = {
    "pinned while an image is made": (
        "jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable",
    ),
    "which devices there are, and how many; their kind is in the fingerprint": (
        "jax_cuda_visible_devices", "jax_default_device", "jax_num_cpu_devices", "jax_oneapi_visible_devices",
        "jax_platform_name", "jax_platforms", "jax_rocm_visible_devices", "jax_xla_backend",
    ),
    "where compiled programs are kept": (
        "jax_compilation_cache_check_contents", "jax_compilation_cache_dir",
        "jax_compilation_cache_include_metadata_in_key", "jax_compilation_cache_max_size",
        "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes", "jax_raise_persistent_cache_errors",
    ),
    "dumps": (
        "jax_dump_ir_modes", "jax_dump_ir_to", "jax_include_debug_info_in_dumps", "jax_pprint_use_color",
    ),
    "logging and warnings": (
        "jax_captured_constants_report_frames", "jax_captured_constants_warn_bytes", "jax_check_proxy_envs",
        "jax_compiler_detailed_logging_min_ops", "jax_debug_log_modules", "jax_distributed_debug",
        "jax_explain_cache_misses", "jax_explicit_x64_dtypes", "jax_log_checkpoint_residuals", "jax_log_compiles",
        "jax_logging_level", "jax_pallas_verbose_errors",
    ),
    "what tracebacks and errors say": (
        "jax_hlo_source_file_canonicalization_regex", "jax_include_full_tracebacks_in_locations",
        "jax_send_traceback_to_runtime", "jax_source_url_schema", "jax_traceback_filtering",
        "jax_traceback_in_locations_limit", "jax_tracer_error_num_traceback_frames",
    ),
    "checks that raise an error and change nothing": (
        "jax_array_garbage_collection_guard", "jax_check_static_indices", "jax_check_tracer_leaks",
        "jax_debug_infs", "jax_debug_key_reuse", "jax_debug_leaked_clients_on_clear_backends", "jax_debug_nans",
        "jax_disallow_mesh_context_manager", "jax_enable_checks", "jax_legacy_prng_key", "jax_mutable_array_checks",
        "jax_no_execution", "jax_no_tracing", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion",
        "jax_thread_guard", "jax_transfer_guard", "jax_transfer_guard_device_to_device",
        "jax_transfer_guard_device_to_host", "jax_transfer_guard_host_to_device",
    ),
    "how processes of one program find each other; ours have nothing to do with each other": (
        "jax_cpu_collectives_implementation", "jax_cpu_get_global_topology_timeout_minutes",
        "jax_cpu_get_local_topology_timeout_minutes", "jax_cross_host_transfer_socket_address",
        "jax_cross_host_transfer_timeout_seconds", "jax_cross_host_transfer_transfer_size",
        "jax_cross_host_transport_addresses", "jax_enable_preemption_service", "jax_enable_recoverability",
        "jax_force_dcn_cross_host_transfers", "jax_share_binary_between_hosts_timeout_ms",
    ),
    "nothing is waited for differently": ("jax_cpu_enable_async_dispatch",),
}  # fmt: skip

# JAX's own defaults of all others: what is as here is not written down.
JAX_DEFAULTS: Mapping[str, Any] = {
    "check_vma": False,
    "eager_constant_folding": False,
    "jax2tf_associative_scan_reductions": False,
    "jax2tf_default_native_serialization": True,
    "jax_allow_f16_reductions": True,
    "jax_auto_pcast": True,
    "jax_backend_target": "",
    "jax_bcoo_cusparse_lowering": False,
    "jax_compilation_cache_expect_pgle": False,
    "jax_compiler_enable_remat_pass": True,
    "jax_custom_vjp3": False,
    "jax_disable_bwd_checks": False,
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_disable_vmap_shmap_error": False,
    "jax_embedded_constants_max_bytes": 32,
    "jax_enable_custom_prng": False,
    "jax_enable_pgle": False,
    "jax_error_checking_behavior_divide": "ignore",
    "jax_error_checking_behavior_nan": "ignore",
    "jax_error_checking_behavior_oob": "ignore",
    "jax_exec_time_optimization_effort": 0.0,
    "jax_experimental_unsafe_xla_runtime_errors": False,
    "jax_export_calling_convention_version": 10,
    "jax_export_ignore_forward_compatibility": False,
    "jax_high_dynamic_range_gumbel": False,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_mock_gpu_topology": "",
    "jax_mosaic_allow_hlo": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_pallas_enable_debug_checks": False,
    "jax_pallas_poison_buffers": False,
    "jax_pallas_use_mosaic_gpu": True,
    "jax_persistent_cache_enable_xla_caches": "xla_gpu_per_fusion_autotune_cache_dir",
    "jax_pgle_aggregation_percentile": 90,
    "jax_pgle_profiling_runs": 3,
    "jax_pjrt_client_create_options": None,
    "jax_ragged_dot_use_gpu_pallas_triton_lowering": False,
    "jax_ragged_dot_use_ragged_dot_instruction": True,
    "jax_random_seed_offset": 0,
    "jax_refs_to_pins": False,
    "jax_remat3": False,
    "jax_remove_custom_partitioning_ptr_from_cache_key": False,
    "jax_remove_size_one_mesh_axis_from_type": False,
    "jax_scan3": False,
    "jax_serialization_version": 0,
    "jax_share_binary_between_hosts": False,
    "jax_softmax_custom_jvp": False,
    "jax_sort_devices_by_process_index": True,
    "jax_threefry_gpu_kernel_lowering": False,
    "jax_use_direct_linearize": True,
    "jax_use_emit_pipeline_primitive": False,
    "jax_use_magma": "auto",
    "jax_use_shardy_partitioner": True,
    "jax_use_simplified_jaxpr_constants": False,
    "jax_xla_profile_version": 0,
    "mock_num_gpu_processes": 0,
}

# XLA's flags (`XLA_FLAGS`) that decide no bits, as patterns of their whole names, by the reason.
XLA_WITHOUT_SAY: Mapping[str, str] = {
    "how many devices there are": "xla_force_host_platform_device_count",
    "dumps": "xla_dump_.*",
    "in how many parts a program is compiled side by side": "xla_cpu_parallel_codegen_split_count",
}

# Variables that XLA and the libraries below it read, and those of them that decide no bits, by the reason.
VARIABLES = re.compile(
    r"(XLA|CUDNN|CUBLAS|CUBLASLT|ONEDNN|DNNL|MIOPEN|ROCBLAS|HIPBLASLT)_.*|LIBTPU_INIT_ARGS|NVIDIA_TF32_OVERRIDE|"
    r"TF_(CONV|CUBLAS|CUBLASLT|CUDNN|DETERMINISTIC|DISABLE|ENABLE|ROCM|USE|XLA)_.*"
)
VARIABLES_WITHOUT_SAY: Mapping[str, str] = {
    "read flag by flag": "XLA_FLAGS",
    "how memory is taken": "XLA_PYTHON_CLIENT_.*|XLA_CLIENT_MEM_FRACTION",
    "logging": "(CUDNN|CUBLAS|CUBLASLT|MIOPEN)_(LOG|ENABLE_LOGGING).*|(ONEDNN|DNNL)_VERBOSE.*",
}


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Within, programs are made with the settings that are promised, whatever is set outside."""
    with (
        jax.threefry_partitionable(True),
        jax.default_prng_impl("threefry2x32"),
        jax.enable_x64(False),
        jax.default_matmul_precision(None),
    ):
        yield


def in_force(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """All that is set and may decide bits, by name: JAX's settings, XLA's flags and variables; nothing in a plain run.

    Args:
      variables: of the environment.
    """
    return {**_of_jax(), **_of_xla(variables.get("XLA_FLAGS", "")), **_of_libraries(variables)}


def in_fingerprint() -> dict[str, str]:
    """What `in_force` gives, as the fingerprint has it: JSON under `settings`, or nothing."""
    found = in_force()
    return {"settings": json.dumps(found, sort_keys=True)} if found else {}


def _of_jax() -> dict[str, str]:
    without_say = {name for names in JAX_WITHOUT_SAY.values() for name in names}
    # By attribute, since those that a context has changed in this thread are not among the values.
    found = {name: getattr(jax.config, name, value) for name, value in jax.config.values.items()}
    return {
        name: _text(value)
        for name, value in found.items()
        if name not in without_say and (name not in JAX_DEFAULTS or _text(value) != _text(JAX_DEFAULTS[name]))
    }


def _text(value: Any) -> str:
    return str(value.value if isinstance(value, enum.Enum) else value)


def _of_xla(text: str) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for word in _words(text):
        name, _, value = word.lstrip("-").partition("=")
        if not _any_of(XLA_WITHOUT_SAY, name):
            found.setdefault(name, []).append(value)
    return {name: " ".join(values) for name, values in found.items()}


def _words(text: str) -> list[str]:
    """Flags as XLA reads them: what does not begin with a dash names a file of them."""
    text = text.strip()
    if text and not text.startswith("-"):
        try:
            text = Path(text).read_text("utf-8", "replace")
        except OSError:
            return [text]
    try:
        return shlex.split(text)
    except ValueError:  # a quote that is not closed
        return text.split()


def _of_libraries(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in variables.items()
        if value and VARIABLES.fullmatch(name) and not _any_of(VARIABLES_WITHOUT_SAY, name)
    }


def _any_of(patterns: Mapping[str, str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns.values())
