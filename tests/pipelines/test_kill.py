"""A run that is killed at any moment, and run again."""

import contextlib
import json
import os
import random
import signal
from pathlib import Path

import pytest

from pipelines.sinks.manifest_rows import without_sizes
from sdjax.images.encode import decode, read_metadata
from sdjax.jobs.records import with_seeds_as_text
from sdjax.storage import TEMPORARY, read_jsonl
from tests.pipelines.conftest import ended, finish, start

ROWS = 40


def whole(out: Path, count: int) -> None:
    """Asserts that an output is complete: one whole file for each job, all metadata, nothing else."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert not [name for name in files if TEMPORARY in name]
    rows = {row["file_name"]: row for row in read_jsonl(str(out / "metadata.jsonl"))}
    assert files.keys() == {"metadata.jsonl", "summary.json", *rows}
    assert len({row["id"] for row in rows.values()}) == len(rows) == count
    for name, row in rows.items():
        assert decode(files[name], name).shape == (row["height"], row["width"], 3)
        assert {"file_name": name, **with_seeds_as_text(read_metadata(files[name], name))} == without_sizes(row)


def killed(command: list[str | Path], out: Path, files: int, seconds: float) -> bool:
    """Runs a command and kills all its processes some time after an output holds so many files.

    Gives whether it was still at work then.
    """
    process = start([*command, out], start_new_session=True)
    with process:
        while sum(path.is_file() for path in out.rglob("*")) < files and not ended(process, 0.01):
            pass
        early = not ended(process, seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return early


@pytest.fixture(scope="module")
def command(tiny_folder, tmp_path_factory) -> list[str | Path]:
    """What is run, without the output."""
    prompts = tmp_path_factory.mktemp("kill") / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"a cat {n}", "steps": 30}) + "\n" for n in range(ROWS)))
    return [
        "generate",
        "--quiet",
        "--model",
        tiny_folder,
        "--set",
        "engine.batch_size=1",
        "--set",
        "sampler=euler",
        prompts,
    ]


def test_a_run_killed_again_and_again_goes_on_where_it_was(command, tmp_path):
    left = []
    # Early in the run (up to nine of the files are a lock and what eight threads write just then), in its middle, and
    # when the metadata are about to be written.
    for files in (12, ROWS // 2, ROWS + 2):
        assert killed(command, tmp_path, files, 0.0)
        left.append(len(list(tmp_path.glob("images/*/[0-9a-f]*"))))
    assert 0 < left[0] < left[1] < left[2] == ROWS
    done = finish(start([*command, tmp_path]))
    assert done.status == 0 and f"0 made, {ROWS} there already" in done.out
    whole(tmp_path, ROWS)


@pytest.mark.slow
def test_a_run_killed_at_any_of_ten_random_moments_is_whole_after_the_next(command, tmp_path):
    moments = random.Random(2)
    for number in range(10):
        out = tmp_path / str(number)
        # There are about as many temporary files of metadata as there are images, at the end.
        killed(command, out, moments.randrange(2 * ROWS), moments.uniform(0, 0.3))
        done = finish(start([*command, out]))
        assert (done.status, done.err) == (0, "")
        whole(out, ROWS)
