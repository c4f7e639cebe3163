"""A command that a signal ends, at whatever moment: one line, the status that README names, and nothing left behind."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from pipelines import stopping
from sdjax.checkpoints.streamed import remove_unfinished, written_whole
from tests.pipelines.conftest import ended, finish, start
from tests.pipelines.test_kill import whole

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROWS = 24
TWO_PROCESSES = ("--", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
GOES_ON = "the same command goes on from here"


def line_of(number: signal.Signals) -> str:
    return "stopped" if number == signal.SIGINT else f"stopped by {number.name}"


def heed() -> None:
    """Undoes what tests that run in the background are started with: some signals are ignored."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def hears(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether a process is as far as to wait for a signal."""
    with contextlib.suppress(OSError):
        [mask] = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigBlk" in line]
        return bool(int(mask.split()[1], 16) >> (number - 1) & 1)
    return False


@dataclasses.dataclass
class Place:
    """Where a command runs: its temporary files, its compiled programs, its output."""

    base: Path

    def __post_init__(self) -> None:
        self.temporary.mkdir(parents=True, exist_ok=True)

    @property
    def temporary(self) -> Path:
        return self.base / "tmp"

    @property
    def out(self) -> Path:
        return self.base / "out"

    @property
    def environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self.temporary), "SDJAX_CACHE": str(self.base / "compiled")}

    def is_doing(self, what: str) -> bool:
        """Whether a worker says that it does this."""
        with contextlib.suppress(OSError):  # gone meanwhile
            return any(what in path.read_text() for path in self.temporary.glob("sdjax-*/sdjax-progress-*/*.json"))
        return False

    def files(self) -> list[Path]:
        return [path for path in self.out.rglob("*") if path.is_file()]

    def left(self) -> list[Path]:
        """What nobody needs any more."""
        hidden = [path for path in self.files() if path.name.startswith(".")]
        entries = [path for path in self.base.glob("compiled/*") if path.is_file() and not path.stat().st_size]
        return [*hidden, *entries, *self.temporary.iterdir()]


@contextlib.contextmanager
def started(place: Place, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a group of processes of its own, which is killed at the end."""
    process = start(arguments, preexec_fn=heed, start_new_session=True, variables=place.environment)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen[str], moment: Callable[[], bool]) -> None:
    while not moment():
        assert not ended(process, 0.002), process.communicate()


def members(group: int) -> list[int]:
    """The processes of a group that are at work; those that nobody has buried yet are not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            found += [int(path.parent.name)] if int(its_group) == group and state != "Z" else []
    return found


# --- What is stopped, and how ---


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_a_command_before_it_has_begun(number, tmp_path):
    place = Place(tmp_path)
    with started(place, "env") as process:
        wait_for(process, lambda: hears(process, number))
        for _ in range(2):
            process.send_signal(number)
        done = finish(process)
    assert (done.status, done.out, done.err) == (128 + number, "", f"{line_of(number)}\n")
    assert place.left() == []


def test_a_signal_that_is_to_be_ignored_stays_so(tmp_path):
    """As `nohup` and the background of a shell ask for."""

    def ignore() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(["env"], preexec_fn=ignore)
    wait_for(process, lambda: hears(process, signal.SIGTERM))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert finish(process).err == "stopped by SIGTERM\n"


def test_a_signal_during_the_first_compilation_leaves_nothing(prompts, tiny_folder, tmp_path):
    place = Place(tmp_path)
    with started(place, *command(prompts, tiny_folder), place.out) as process:
        wait_for(process, lambda: place.is_doing("compiling"))
        process.send_signal(signal.SIGTERM)
        done = finish(process)
    assert (done.status, done.out, done.err) == (143, "", f"stopped by SIGTERM; {GOES_ON}\n")
    assert place.left() == []


STOPS = """
    import os, signal, subprocess, sys, tempfile, threading, time
    from pipelines import stopping

    HEARS = "import signal; print(*[signal.getsignal(n).name for n in (1, 2, 15)], flush=True)"
    WRITES = "import sys; f = open('.sdjax-tmp-1', 'w'); g = open('whole', 'w'); " + HEARS + "; sys.stdin.read()"

    def makes_files():
        for number in range(10**9):
            path = f".sdjax-tmp-{threading.get_ident()}-{number}"
            with stopping.undoing(lambda: open(path, "w"), lambda _: os.unlink(path)):
                time.sleep(0.0001)
                os.unlink(path)

    def command():
        tempfile.mkstemp()
        for _ in range(4):
            threading.Thread(target=makes_files).start()
        worker = subprocess.Popen(
            f'{sys.executable} -c "{WRITES}"; true', shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert worker.stdout.readline() == b"SIG_IGN SIG_IGN SIG_IGN\\n"
        with stopping.undoing(lambda: open("lock", "w"), lambda _: os.unlink("lock")):
            os.killpg(os.getpgrp(), signal.SIGHUP)  # as a terminal that is closed
            try:
                time.sleep(100)
            finally:
                print("never")

    stopping.temporary_files(".sdjax-tmp-")
    stopping.run(command)
"""


def test_workers_are_ended_and_all_that_is_under_way_is_undone(tmp_path):
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STOPS)],
        cwd=tmp_path,
        env=dict(os.environ, TMPDIR=str(tmp_path / "tmp")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed,
    )
    out, err = process.communicate()
    assert (process.returncode, out, err) == (129, "", "stopped by SIGHUP\n")
    assert members(process.pid) == []
    # What is not a temporary file is nobody's to delete.
    assert {path.name for path in tmp_path.rglob("*")} == {"tmp", "whole"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_conversion_has_not_written_whole_can_be_removed_from_another_place(kind, tmp_path):
    target = tmp_path / "new"
    with contextlib.suppress(FileNotFoundError), written_whole(target) as partial:
        path = partial if kind == "file" else partial / "unet" / "weights"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
        remove_unfinished()
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "image.png"]], ids=["help", "inspect"])
def test_a_command_whose_reader_goes_ends_quietly_as_other_tools_do(arguments, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    process = start(arguments, cwd=tmp_path)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, "")
    process.stderr.close()


def test_a_command_of_whose_errors_the_reader_goes_ends_quietly(tmp_path):
    process = start(["inspect", tmp_path / "none"])
    process.stderr.close()
    assert (process.wait(), process.stdout.read()) == (141, "")
    process.stdout.close()


def test_a_command_says_that_there_is_no_room_for_what_it_prints():
    with open("/dev/full", "w") as full:
        done = finish(start(["--help"], stdout=full))
    assert (done.status, done.err) == (1, "error: standard output: No space left on device\n")


def test_readme_names_every_status():
    text = " ".join((Path(__file__).parents[2] / "README.md").read_text("utf-8").split())
    assert all(f"{128 + number} after " in text and number.name in text for number in SIGNALS)
    assert f"ends quietly with {stopping.READER_GONE}." in text


# --- Fault injection ---


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signals") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a cat {n}", "steps": 300}) + "\n" for n in range(ROWS)))
    return path


def command(prompts: Path, model: Path) -> list[str | Path]:
    settings = ["--set", "engine.batch_size=1", "--set", "sampler=euler"]
    return ["generate", "--quiet", "--model", model, *settings, prompts]


def images(place: Place) -> int:
    return len(list(place.out.glob("images/*/[0-9a-f]*")))


def moments(place: Place, process: subprocess.Popen[str]) -> list[Callable[[], bool]]:
    """Ten, one after the other in the life of a run; three of them while the first program compiles."""
    before = images(place)

    def more(count: int) -> Callable[[], bool]:
        return lambda: images(place) >= min(before + count, ROWS)

    return [
        lambda: hears(process, signal.SIGTERM),
        lambda: any(place.temporary.glob("sdjax-*/sdjax-progress-*")),
        lambda: place.is_doing("loading"),
        *[lambda: place.is_doing("compiling")] * 3,
        *map(more, (1, 2, 3, ROWS)),
    ]


def stopped(
    place: Place, arguments: Sequence[str | Path], number: signal.Signals, times: int, moment: int, seconds: float
) -> None:
    """Runs a command until a moment and some time more, stops it, and asserts that nothing of it is left."""
    with started(place, *arguments) as process:
        wait_for(process, moments(place, process)[moment])
        ended(process, seconds)
        for _ in range(times):
            process.send_signal(number)
            ended(process, 0.01)
        done = finish(process)
        assert members(process.pid) == []
    assert "Traceback" not in done.err and place.left() == [], done
    if done.status == 0:
        assert images(place) == ROWS and moment > 5
    else:
        assert (done.status, done.out) == (128 + number, ""), done
        assert done.err == f"{line_of(number)}; {GOES_ON}\n" or (times > 1 and not done.err), done


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 2), *((each, 1) for each in SIGNALS)])
def test_a_run_stopped_at_ten_moments_leaves_nothing_and_is_whole_after_the_next(
    number, times, prompts, tiny_folder, tmp_path
):
    place, delay = Place(tmp_path), random.Random(number * times)
    arguments = [*command(prompts, tiny_folder), place.out]
    for moment in range(10):
        stopped(place, arguments, number, times, moment, delay.uniform(0, 0.5) if moment in (4, 5) else 0)
    done = finish(start(arguments, variables=place.environment))
    assert (done.status, done.err) == (0, "")
    whole(place.out, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_run_of_several_processes_ends_with_all_of_them(number, prompts, tiny_folder, tmp_path):
    place = Place(tmp_path)
    arguments = [*command(prompts, tiny_folder), place.out, *TWO_PROCESSES]
    for moment in (5, 7):
        with started(place, *arguments) as process:
            wait_for(process, moments(place, process)[moment])
            os.killpg(process.pid, number)  # as a terminal does
            done = finish(process)
            assert members(process.pid) == []
        assert done.status == 128 + number and "Traceback" not in done.err
        assert done.err.splitlines()[-1] == f"{line_of(number)}; {GOES_ON}" and place.left() == []
    done = finish(start(arguments, variables=place.environment))
    assert done.status == 0
    whole(place.out, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_conversion_that_is_stopped_leaves_nothing(number, tmp_path):
    place = Place(tmp_path)
    with started(place, "convert", "emoji", place.out / "emoji.safetensors") as process:
        wait_for(process, lambda: any(place.out.glob(".*")))
        process.send_signal(number)
        done = finish(process)
    assert (done.status, done.err) in ((128 + number, f"{line_of(number)}\n"), (0, "")) and place.left() == []
