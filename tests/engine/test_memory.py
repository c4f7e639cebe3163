"""The free memory of a CPU: the least of what the machine and each control group around the process leave."""

from pathlib import Path

import jax

from sdjax.engine.memory import free_bytes

GIB = 1 << 30
# Of several devices of a CPU each has its share.
CPU, DEVICES = jax.local_devices(backend="cpu")[0], len(jax.local_devices(backend="cpu"))


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB\n"}


def test_of_a_machine_it_is_what_the_system_calls_available(tmp_path):
    assert free_bytes(CPU, written(tmp_path, MACHINE)) == 8 * GIB // DEVICES
    assert free_bytes(CPU, tmp_path / "nothing") is None


def test_a_control_group_limits_it_with_the_cache_of_files_counted_as_free(tmp_path):
    group = {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": f"{GIB}\n",
        "sys/fs/cgroup/job/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/job/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    assert free_bytes(CPU, written(tmp_path, {**MACHINE, **group})) == 2 * GIB // DEVICES


def test_so_does_one_of_the_first_version_also_where_its_path_is_that_outside_of_a_container(tmp_path):
    group = {
        "proc/self/cgroup": "4:cpu,memory:/outside/of/it\n3:cpuset:/\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GIB}\n",
    }
    assert free_bytes(CPU, written(tmp_path, {**MACHINE, **group})) == GIB // DEVICES


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path):
    group = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
    }
    assert free_bytes(CPU, written(tmp_path, {**MACHINE, **group})) == 0
