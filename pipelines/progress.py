"""How far a run is: written by each worker process, read and drawn by the one that started it.

A folder on the local disk holds a small file per process, replaced whole a few times a second. Workers on
other machines have no such folder and write nothing. What is drawn is never what is counted: the run's
summary comes out of the pipeline itself.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pipelines.terminal import visible

# How often a worker writes, and how often the bar looks, in seconds.
_WRITE_EVERY, _LOOK_EVERY = 0.3, 0.25
# How often a line is printed where there is no terminal to draw on.
_PRINT_EVERY = 10.0


class Reporter:
    """What one process reports: counts that only grow, what it is doing, and what stopped it."""

    def __init__(self, folder: str) -> None:
        """Writes into `folder`, if that is there."""
        self._path = Path(folder) / f"{os.getpid()}-{uuid.uuid4().hex}.json"
        self._counts: Counter[str] = Counter()
        self._doing = ""
        self._error = ""
        self._written = 0.0
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Counts something."""
        with self._lock:
            self._counts[name] += count
            if time.monotonic() - self._written > _WRITE_EVERY:
                self._write()

    def doing(self, what: str) -> None:
        """Says what takes the time just now."""
        with self._lock:
            self._doing = what
            self._write()

    def failed(self, message: str) -> None:
        """Leaves the message of what stops the run, which a runner would wrap in pages of its own."""
        with self._lock:
            self._error = message
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        text = json.dumps({"counts": self._counts, "doing": self._doing, "error": self._error})
        temporary = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # another machine, or the run is over
            temporary.write_text(text, "utf-8")
            temporary.replace(self._path)


class Reported(NamedTuple):
    """What all processes report: the sums of their counts, what each is doing, and their errors."""

    counts: Counter[str]
    doing: list[str]
    errors: list[str]


def read(folder: str) -> Reported:
    """What the processes have written into a folder."""
    found = Reported(Counter(), [], [])
    for path in sorted(Path(folder).glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            each: dict[str, Any] = json.loads(path.read_text("utf-8"))
            found.counts.update(each["counts"])
            found.doing.extend(filter(None, [each["doing"]]))
            found.errors.extend(filter(None, [each["error"]]))
    return found


class _Speed(ProgressColumn):
    """Images per second of late; over the whole run, if that was too short to tell."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None and task.completed and task.elapsed:
            speed = task.completed / task.elapsed
        return Text("" if speed is None else f"{speed:.2f} images/s", style="cyan")


class Bar:
    """A context in which a line shows the whole run, also while programs compile."""

    def __init__(self, folder: str, console: Console) -> None:
        """Watches `folder`, draws on `console`."""
        self._folder = folder
        self._console = console
        self._begun = self._printed = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),  # it may hold a path with brackets
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=60,
            refresh_per_second=4,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Bar":
        self._task = self._bar.add_task("reading prompts", total=None)
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._bar.stop()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY):
            self._look()

    def _look(self) -> None:
        counts, doing, _ = read(self._folder)
        wanted, made = counts["wanted"], counts["made"] + counts["failed"]
        what = visible(doing[-1]) if doing else ("sampling" if wanted else f"reading prompts, {counts['rows']} rows")
        self._bar.update(self._task, description=what, total=wanted or None, completed=min(made, wanted))
        if not self._console.is_terminal and time.monotonic() - self._printed > _PRINT_EVERY:
            self._printed = time.monotonic()
            seconds = self._printed - self._begun
            self._console.print(Text(f"{what}: {made} of {wanted} images after {seconds:.0f} s"))
