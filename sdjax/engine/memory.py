"""How much memory a device has left."""

from collections.abc import Iterator
from pathlib import Path

import jax

# Where Linux says what a control group may use and uses: limit, use, and the name of the cache that can be dropped.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_bytes(device: jax.Device, root: Path = Path("/")) -> int | None:
    """Bytes that a device can still give; None where nothing says it.

    Of a CPU: this process' share of what is available, in the machine and in each control group around the process.

    Args:
      device: a local one.
      root: of the file system.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    found = [*_available(root), *_left_in_groups(root)]
    return min(found) // len(jax.local_devices(backend="cpu")) if found else None


def _available(root: Path) -> Iterator[int]:
    """Of the machine."""
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _left_in_groups(root: Path) -> Iterator[int]:
    """Of the control groups of this process, inner ones first, of both versions."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names, top = (_V1, root / "sys/fs/cgroup/memory") if controllers else (_V2, root / "sys/fs/cgroup")
        inner = top / path.strip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(top):  # in a container the path may be that outside of it
                yield from _left(folder, *names)


def _left(folder: Path, limit: str, use: str, cache: str) -> Iterator[int]:
    """Of one control group, whose cache of files the system drops first; nothing where there is no limit."""
    numbers = [line for name in (limit, use) for line in _lines(folder / name)]
    if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        dropped = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == cache]
        yield max(0, int(numbers[0]) - int(numbers[1]) + sum(dropped))


def _lines(file: Path) -> list[str]:
    """None if there is no such file."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
