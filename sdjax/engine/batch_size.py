"""The largest batch that fits into the memory of a device, by what its compiled programs say that they take."""

from collections.abc import Callable, Sequence

from jax.stages import Compiled

from sdjax.engine.execution import Execution
from sdjax.engine.memory import free_bytes
from sdjax.engine.passes import Task
from sdjax.engine.uncomputed import Uncomputed
from sdjax.library.opened import OpenLibrary

# Images per device that are tried. More make no device faster, and leave more of the last batch of a run unused.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Sizes by which the line is drawn.
_MEASURED = (2, 4)
# The share of what is free that programs may take: allocators leave gaps, and the batch that comes next waits there.
_SHARE = 0.8


def fitting(
    execution: Execution,
    task: Task,
    library: OpenLibrary,
    *,
    below: int | None = None,
    free: int | None = None,
) -> int:
    """Images per device of the largest batch for which there is memory; 0 if not even one image fits.

    Nothing is computed for it: programs of two sizes are compiled, and a line is drawn through what they take; then
    that of the largest size below the limit, which has to fit by what it says itself.

    Args:
      execution: of passes, on the devices.
      task: whose passes count, up to the first that begins on the host.
      library: of the task.
      below: only smaller sizes; None is all.
      free: bytes of memory of each device; None is what the first one has left.
    """
    device = execution.devices.all[0]
    free = free_bytes(device) if free is None else free
    sizes = [size for size in SIZES if below is None or size < below]
    if free is None or not sizes:  # nothing says what fits
        return sizes[0] if sizes else 0

    def needed(size: int) -> int:
        return _bytes_of(_programs(execution, task, library, size), device.platform)

    return largest(sizes, needed, int(free * _SHARE))


def largest(sizes: Sequence[int], needed: Callable[[int], int], limit: int) -> int:
    """The largest of ascending sizes that needs no more than a limit; 0 if none does.

    Args:
      sizes: from which is chosen.
      needed: what a size needs; about a line, and dear to ask.
      limit: of the same unit.
    """
    small, large = _MEASURED
    at_small, at_large = needed(small), needed(large)
    slope = (at_large - at_small) / (large - small)
    for size in reversed(sizes):
        if at_small + slope * (size - small) <= limit and needed(size) <= limit:
            return size
    return 0


def _programs(execution: Execution, task: Task, library: OpenLibrary, size: int) -> list[Compiled]:
    """The compiled programs of a task's passes, in batches of `size` images per device."""
    devices = Uncomputed(execution.devices)
    execution.on(devices, size).begin([task], library)
    return devices.programs


def _bytes_of(programs: Sequence[Compiled], platform: str) -> int:
    """What programs take of each device besides parameters and inputs."""
    found = []
    for program in programs:
        stats = program.memory_analysis()
        found.append(stats.temp_size_in_bytes + stats.output_size_in_bytes if stats else 0)
    # A CPU may run the programs of two batches at a time, all others one after the other.
    return sum(found) if platform == "cpu" else max(found)
