"""What the tests of whole runs share: one model that stays loaded, and commands of their own."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli, generate
from pipelines.config import settings
from pipelines.transforms.manifest import Counts
from sdjax.jobs.job import FIELDS


@pytest.fixture(scope="session")
def progress_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all runs in this process, which thereby share one engine."""
    return tmp_path_factory.mktemp("progress")


@pytest.fixture(scope="session")
def run_here(tiny_folder: Path, progress_folder: Path) -> Callable[..., Counts]:
    """Runs the pipeline in this process on the toy: prompt file, output, Beam's flags, keys and fields of jobs.

    Keys go without their section where no field of a job is called the same.
    """
    of_run = {name: key for name, key in settings.BY_NAME.items() if name not in FIELDS}

    def run(prompts: Path, out: Path, flags: Sequence[str] = (), **keys: Any) -> Counts:
        values = {"model": str(tiny_folder), "batch_size": 1, "steps": 2, "sampler": "euler", **keys}
        run_config = settings.make({of_run.get(name, name): value for name, value in values.items()})
        return generate.run_pipeline([str(prompts)], str(out), run_config, list(flags), str(progress_folder))

    return run


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a command left: its exit status, and what it printed on both streams."""

    status: int
    out: str
    err: str


def start(
    arguments: Sequence[str | Path],
    devices: int | None = None,
    variables: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[str]:
    """Starts the command line as a process of its own, with some variables of its environment changed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), **(variables or {})}
    if devices:
        # Compiled in one part, as in these tests; it decides nothing, but programs are kept apart by it.
        flags = "--xla_cpu_parallel_codegen_split_count=1"
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} {flags}"
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *map(str, arguments)],
        env=environment,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def finish(process: subprocess.Popen[str]) -> Finished:
    """Waits for the end of a process."""
    out, err = process.communicate()
    return Finished(process.returncode, out, err)


def ended(process: subprocess.Popen[Any], within: float) -> bool:
    """Whether a process ends within so many seconds."""
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True
