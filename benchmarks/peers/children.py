"""Processes of programs that are asked in turns, of which only a few are alive at once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from benchmarks.peers.work import Work


class Measurement(NamedTuple):
    """One run of a program.

    seconds: on the clock.
    cpu_seconds: of all its threads.
    peak_bytes: the most memory that its process had resident up to then.
    array_bytes: of sdjax, all arrays that it held afterwards; None of others.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    array_bytes: int | None


class Children:
    """Processes by program; at most `alive` of them, since each holds a whole model.

    When another is needed, the one that was asked least recently ends: of a program that is compared with one after the
    other, the first stays.
    """

    def __init__(self, model: Path, build: Path, alive: int = 2) -> None:
        """With no process yet.

        Args:
          model: folder as diffusers writes it.
          build: folder for what programs compile or convert, and for their outputs and logs.
          alive: how many processes at most.
        """
        self.model, self.build, self.alive = model, build, alive
        self._processes: dict[str, subprocess.Popen[str]] = {}  # least recently asked first
        self._prepared: dict[str, set[Work]] = {}
        build.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._processes):
            self._end(name)

    def run(self, name: str, work: Work) -> Measurement:
        """Does work, after a process that has not done such work yet has warmed up."""
        self._process(name)
        if work not in self._prepared[name]:
            self._ask(name, "prepare", work, self.output_of(name))
            self._prepared[name].add(work)
        return self._ask(name, "run", work)

    def started(self, name: str, work: Work) -> Measurement:
        """Does work in a new process, with seconds from its start on, and ends it."""
        if name in self._processes:
            self._end(name)
        begun = time.perf_counter()
        self._process(name)
        found = self._ask(name, "run", work, self.output_of(name))
        seconds = time.perf_counter() - begun
        self._end(name)
        return found._replace(seconds=seconds)

    def output_of(self, name: str) -> Path:
        """The file of what a program gave when it warmed up, or started."""
        return self.build / f"{name}.npy"

    def _process(self, name: str) -> subprocess.Popen[str]:
        """The process of a program, now the one that was asked last."""
        process = self._processes.pop(name, None)
        if process is None:
            while len(self._processes) >= self.alive:
                self._end(next(iter(self._processes)))
            process, self._prepared[name] = self._start(name), set()
        self._processes[name] = process
        return process

    def _start(self, name: str) -> subprocess.Popen[str]:
        with (self.build / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.child", name, str(self.model), str(self.build)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | _caches(self.build),
            )

    def _ask(self, name: str, do: str, work: Work, output: Path | None = None) -> Measurement:
        process = self._processes[name]
        assert process.stdin and process.stdout
        request: dict[str, Any] = {"do": do, **work._asdict(), "output": str(output) if output else None}
        print(json.dumps(request), file=process.stdin, flush=True)
        reply = process.stdout.readline()
        if not reply:
            process.wait()  # until its log is whole
            raise RuntimeError(f"{name} ended while it was asked {work}: see {self.build / f'{name}.log'}")
        return Measurement(**json.loads(reply))

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        assert process.stdin and process.stdout
        process.stdin.close()
        process.stdout.close()
        process.wait()


def _caches(build: Path) -> dict[str, str]:
    """Where programs keep what they compile, so that it is compiled once."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(build / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(build / "inductor"),
        "HF_HUB_OFFLINE": "1",
    }
