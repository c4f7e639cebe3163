"""Bounds on what one case of fuzzing may take: processor time and memory."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

# Of one case: seconds of processor time, so that a busy machine fails nothing, and bytes beyond what was there before.
MOST_SECONDS = 2.0
MOST_MEMORY = 1 << 30

_STATUS = Path("/proc/self/status")


@contextlib.contextmanager
def limited(seconds: float = MOST_SECONDS, memory: int = MOST_MEMORY) -> Iterator[None]:
    """Fails if what is done inside takes more processor time or memory."""

    def late(*_: object) -> None:
        raise RuntimeError(f"more than {seconds} seconds of processor time")

    with contextlib.suppress(OSError):  # the peak is counted from here on, where there is such a thing
        Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    former = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)
    taken = resident("VmHWM") - before
    assert taken < memory, f"{taken} bytes of memory, more than {memory}"


def resident(field: str) -> int:
    """Bytes, from the system's account of this process; 0 where it keeps none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
