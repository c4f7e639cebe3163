"""The same job file on the local runner, Prism and Dask: the same ids, bytes and manifest, each image drawn once.

`make cluster` gets what is needed and runs this. All is real: Beam's program prism, its worker pool, Dask's scheduler
and two workers, as processes of this machine.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines import generate, progress, runners, worker
from pipelines.config import settings
from pipelines.runners import RunnerError
from pipelines.transforms.manifest import Counts
from tests.pipelines.conftest import ended
from tests.pipelines.test_runners import contents

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
BATCH = 4
WORKERS = 2
SIZES = ((16, 16), (16, 32), (32, 16), (32, 32), (24, 16), (16, 24))
# Seconds that a process may take to start, or to end.
PATIENCE = 120
# Of the slow engine: jobs, images in a batch, seconds more for each batch.
SLOW_JOBS, SLOW_BATCH, SECONDS = 300, 8, 3.0


def rows(count: int, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    found = [
        {"prompt": "the cat", "seed": seed, "height": sizes[seed % len(sizes)][0], "width": sizes[seed % len(sizes)][1]}
        for seed in range(count)
    ]
    return [*found, found[3], {"prompt": "a cat", "steps": -1}]  # one twice, and one that can't be


JOBS = {"one bucket": rows(40, SIZES[:1]), "many buckets": rows(48, SIZES)}


@contextlib.contextmanager
def started(*command: Any, log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended in the end. This Python is the first that is found: worker pools start a bare one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **variables}
    with log.open("wb") as stream:
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Waits until a process answers."""
    while True:
        try:
            return socket.create_connection(("localhost", port)).close()
        except OSError:
            assert not ended(process, 0.1), f"nothing will answer at {port}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def program() -> str:
    """Prism itself."""
    path = os.environ.get("SDJAX_PRISM", "")
    assert os.access(path, os.X_OK), "make cluster builds prism and names it in SDJAX_PRISM"
    return path


@pytest.fixture(scope="module")
def prism(program) -> list[str]:
    """Flags of Prism as Beam starts it; its worker is this process."""
    return ["--runner=PrismRunner", f"--prism_location={program}"]


@pytest.fixture(scope="module")
def job_server(program, tmp_path_factory) -> Iterator[list[str]]:
    """Flags of Prism as a job server with a pool of workers, as Flink and Spark have: these import nothing before."""
    folder, server, pool = tmp_path_factory.mktemp("prism"), free_port(), free_port()
    workers = "-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", pool
    with (
        started(program, "--job_port", server, "--serve_http=false", log=folder / "prism.log") as prism,
        started(sys.executable, *workers, log=folder / "pool.log") as worker_pool,
    ):
        wait_for(prism, server)
        wait_for(worker_pool, pool)
        environment = "--environment_type=EXTERNAL", f"--environment_config=localhost:{pool}"
        yield ["--runner=PrismRunner", f"--job_endpoint=localhost:{server}", *environment]


@contextlib.contextmanager
def dask_scheduler(folder: Path) -> Iterator[Path]:
    """A Dask scheduler without workers; gives the file that says where it is."""
    file = folder / "scheduler.json"
    command = "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", file
    with started(sys.executable, *command, log=folder / "scheduler.log"):
        with dask_client(file):
            pass
        yield file


@contextlib.contextmanager
def dask_workers(file: Path, *options: str, **variables: str) -> Iterator[None]:
    """Two workers; values of variables of the environment are a letter for each."""
    command = "-m", "dask", "worker", "--scheduler-file", file, "--nthreads", 1, "--no-dashboard", *options
    with contextlib.ExitStack() as stack:
        for number in range(WORKERS):
            place = "--local-directory", file.parent / str(number)
            own = {name: values[number] for name, values in variables.items()}
            log = file.parent / f"worker{number}.log"
            stack.enter_context(started(sys.executable, *command, *place, log=log, **own))
        with dask_client(file) as client:
            client.wait_for_workers(WORKERS, PATIENCE)
        yield


def dask_client(file: Path) -> Any:
    import distributed

    return distributed.Client(scheduler_file=str(file), timeout=PATIENCE, set_as_default=False)


@pytest.fixture(scope="module")
def dask(tmp_path_factory) -> Iterator[list[str]]:
    """Flags of Dask with two workers."""
    with dask_scheduler(tmp_path_factory.mktemp("dask")) as file, dask_workers(file):
        yield ["--runner=DaskRunner", f"--dask_scheduler_file={file}"]


@pytest.fixture(scope="module")
def make(tiny_folder, tmp_path_factory) -> Callable[..., tuple[Counts, list[int]]]:
    """Makes a prompt file into an output, with flags; gives counts, and how many images each process has drawn."""

    def run(prompts: Path, out: Path, flags: Sequence[str] = (), host_batch: int = BATCH) -> tuple[Counts, list[int]]:
        folder = tmp_path_factory.mktemp("progress")
        values = {"model": str(tiny_folder), "engine.batch_size": 1, "steps": 2, "sampler": "euler"}
        run_config = settings.make({**values, "run.host_batch": host_batch})
        counts = generate.run_pipeline([str(prompts)], str(out), run_config, list(flags), str(folder))
        drawn = [json.loads(path.read_text())["counts"].get("made", 0) for path in sorted(folder.glob("*.json"))]
        assert sum(drawn) == progress.read(str(folder)).counts["made"]
        return counts, drawn

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Mapping[str, Path]:
    """The prompt files."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, jobs in JOBS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return {name: folder / f"{name}.jsonl" for name in JOBS}


@pytest.fixture(scope="module")
def local(files, make, tmp_path_factory) -> Mapping[str, dict[str, bytes]]:
    """What the local runner makes of them."""
    folder = tmp_path_factory.mktemp("local")
    return {name: (make(path, folder / name), contents(folder / name))[1] for name, path in files.items()}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("cluster", ["prism", "job_server", "dask"])
def test_a_cluster_makes_the_same_files_and_draws_each_image_once(cluster, name, files, local, make, request, tmp_path):
    flags = request.getfixturevalue(cluster)
    begun = time.monotonic()
    counts, drawn = make(files[name], tmp_path / "out", flags)
    images = len(JOBS[name]) - 2
    print(f"\n{cluster}, {name}: {images} images in {time.monotonic() - begun:.0f} s, by process: {drawn}")
    assert (counts.made, counts.duplicates, counts.rejected_rows, counts.problems()) == (images, 1, 1, [])
    assert sum(drawn) == images
    assert contents(tmp_path / "out") == local[name]
    again, drawn = make(files[name], tmp_path / "out", flags)
    assert (again.there, again.made, sum(drawn)) == (images, 0, 0)
    assert {**contents(tmp_path / "out"), "summary.json": b""} == {**local[name], "summary.json": b""}


@pytest.mark.parametrize("cluster", ["prism", "job_server", "dask"])
def test_what_ends_a_run_on_a_cluster_is_told_in_one_line(cluster, files, make, request, tmp_path):
    (tmp_path / "metadata.jsonl").write_text("no JSON\n")
    words = f"{tmp_path}/metadata.jsonl, line 1: not valid JSON"
    with pytest.raises(RunnerError, match=re.escape(words)) as told:
        make(files["one bucket"], tmp_path, request.getfixturevalue(cluster))
    assert str(told.value).isprintable()


# --- Dask ---


def test_dask_has_as_many_workers_as_its_scheduler_knows(dask):
    assert runners.workers(runners.pipeline(dask)) == WORKERS


def test_a_scheduler_without_workers_is_refused(tmp_path):
    with dask_scheduler(tmp_path) as file, pytest.raises(RunnerError, match="its scheduler has no workers"):
        runners.pipeline(["--runner=Dask", f"--dask_scheduler_file={file}"])


def test_workers_that_would_group_by_other_hashes_are_refused(tmp_path):
    """As they are without their nannies, which set PYTHONHASHSEED."""
    with (
        dask_scheduler(tmp_path) as file,
        dask_workers(file, "--no-nanny", PYTHONHASHSEED="12"),
        pytest.raises(RunnerError, match="its workers have different hashes of one text"),
    ):
        runners.pipeline(["--runner=Dask", f"--dask_scheduler_file={file}"])


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "it needs a scheduler: --dask_client_address=HOST:PORT"),
        (["--dask_client_address=tcp://127.0.0.1:1"], "no Dask scheduler answers at tcp://127.0.0.1:1"),
        (["--dask_client_address=what://x"], "no Dask scheduler answers at what://x"),
    ],
)
def test_a_scheduler_that_is_not_there_is_told_in_one_line(flags, words):
    with pytest.raises(RunnerError, match=re.escape(words)):
        runners.pipeline(["--runner=DaskRunner", *flags])


# --- Prism with a slow engine ---


@pytest.fixture
def slow_jobs(tmp_path) -> Path:
    """Of one bucket."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": "the cat", "seed": seed}) + "\n" for seed in range(SLOW_JOBS)))
    return path


@pytest.fixture
def expected(slow_jobs, make, tmp_path) -> dict[str, bytes]:
    """What the local runner makes of them, at full speed."""
    make(slow_jobs, tmp_path / "local", host_batch=SLOW_BATCH)
    return contents(tmp_path / "local")


@pytest.fixture
def slow_batches(monkeypatch) -> list[list[str]]:
    """Makes every batch take some seconds more; gives the ids of what is made, by batch."""
    made: list[list[str]] = []
    make_engine: Callable[..., Any] = worker.make_engine

    def slowed(*arguments: Any, **options: Any) -> Any:
        engine = make_engine(*arguments, **options)
        run = engine.run

        def slowly(tasks: Any) -> Any:
            time.sleep(SECONDS)
            made.append([])
            for result in run(tasks):
                made[-1].append(result.metadata["id"])
                yield result

        engine.run = slowly
        return engine

    monkeypatch.setattr(worker, "make_engine", slowed)
    return made


def test_prism_with_a_slow_engine_makes_each_image_once_and_the_same_files(
    prism, slow_jobs, expected, slow_batches, make, tmp_path
):
    """Where elements are grouped with state, Prism loses some of them and repeats others."""
    begun = time.monotonic()
    counts, _ = make(slow_jobs, tmp_path / "prism", prism, host_batch=SLOW_BATCH)
    seconds = time.monotonic() - begun
    ids = [image_id for batch in slow_batches for image_id in batch]
    print(f"\n{SLOW_JOBS} jobs: {len(ids)} made on Prism in {len(slow_batches)} batches, {seconds:.0f} s")
    assert (counts.rows, counts.made, counts.problems()) == (SLOW_JOBS, SLOW_JOBS, [])
    assert len(ids) == len(set(ids)) == SLOW_JOBS and len(slow_batches) == -(-SLOW_JOBS // SLOW_BATCH)
    assert seconds > SECONDS * len(slow_batches)
    assert contents(tmp_path / "prism") == expected
