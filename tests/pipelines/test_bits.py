"""A job gives the same bits however it is run, and the same metadata row."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sdjax
from pipelines.sinks.manifest_rows import without_sizes
from pipelines.transforms.manifest import Counts
from sdjax.images.encode import decode
from sdjax.jobs.records import with_seeds_as_numbers
from sdjax.storage import read_jsonl
from tests.pipelines.conftest import finish, start

# Two programs. Images of 128x128 are large enough for sums over them to be split over threads, if they were.
ROWS = [
    *({"prompt": f"a red apple {n}", "seed": n, "steps": 1 + n, "guidance_scale": 2 + n} for n in range(4)),
    *(
        {
            "prompt": f"the cat {n}",
            "seed": n,
            "steps": 3 - n,
            "guidance_scale": 3 * n + 2,
            "sampler": "euler_ancestral",
            "noise_source": "torch",
            "width": 128,
            "height": 128,
        }
        for n in range(3)
    ),
]


def images_of(out: Path) -> dict[str, np.ndarray]:
    """The pixels of an output's images by id, each as its manifest says."""
    rows = list(read_jsonl(str(out / "metadata.jsonl")))
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert {row["file_name"] for row in rows} == {str(path.relative_to(out)) for path in out.glob("images/*/*")}
    return {row["id"]: decode(out / row["file_name"], row["file_name"]) for row in rows}


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def run_here(run_here: Callable[..., Counts], sd1_folder: Path) -> Callable[..., Counts]:
    """Runs the pipeline on a toy of several levels."""
    return functools.partial(run_here, model=str(sd1_folder))


@pytest.fixture(scope="module")
def plain(prompts, run_here, tmp_path_factory) -> Path:
    """An output made in memory, by default settings, on four devices."""
    out = tmp_path_factory.mktemp("plain")
    counts = run_here(prompts, out)
    assert (counts.rows, counts.wanted, counts.made, counts.problems()) == (len(ROWS), len(ROWS), len(ROWS), [])
    return out


def test_the_pipeline_gives_what_generate_gives(plain, sd1):
    jobs = [sdjax.Job(**{"sampler": "euler", **row}) for row in ROWS]
    results = sdjax.generate(sd1, jobs, batch_size=1)
    assert same(images_of(plain), {result.metadata["id"]: result.image for result in results})
    rows = {row["id"]: with_seeds_as_numbers(without_sizes(row)) for row in read_jsonl(str(plain / "metadata.jsonl"))}
    for result in results:
        row = rows[result.metadata["id"]]
        assert row.pop("file_name").endswith(f"/{result.metadata['id']}.png") and row == result.metadata


@pytest.mark.parametrize("host_batch", [1, 3, 8])
def test_it_does_not_matter_how_many_images_are_made_at_once(prompts, plain, run_here, tmp_path, host_batch):
    run_here(prompts, tmp_path, host_batch=host_batch)
    assert (tmp_path / "metadata.jsonl").read_bytes() == (plain / "metadata.jsonl").read_bytes()
    assert same(images_of(tmp_path), images_of(plain))


def test_it_does_not_matter_which_rows_stand_beside_or_before(prompts, plain, run_here, tmp_path):
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("".join(reversed(prompts.read_text().splitlines(True))))
    run_here(backwards, tmp_path / "all")
    assert (tmp_path / "all" / "metadata.jsonl").read_bytes() == (plain / "metadata.jsonl").read_bytes()
    assert same(images_of(tmp_path / "all"), images_of(plain))
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps(ROWS[5]))
    run_here(alone, tmp_path / "one")
    [(name, image)] = images_of(tmp_path / "one").items()
    assert np.array_equal(image, images_of(plain)[name])


def test_it_does_not_matter_that_every_bundle_is_run_twice(prompts, plain, run_here, tmp_path):
    counts = run_here(prompts, tmp_path, ["--direct_runner_bundle_repeat=1"])
    assert counts.made == len(ROWS) and counts.problems() == []
    assert (tmp_path / "metadata.jsonl").read_bytes() == (plain / "metadata.jsonl").read_bytes()
    assert same(images_of(tmp_path), images_of(plain))


@pytest.mark.parametrize("devices, workers", [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_devices_and_worker_processes_do_not_matter(prompts, plain, sd1_folder, tmp_path, devices, workers):
    settings = ["--set", "engine.batch_size=1", "--set", "sampler=euler", "--set", "run.host_batch=3"]
    flags = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"] if workers > 1 else []
    arguments = ["generate", prompts, tmp_path, "--quiet", "--model", sd1_folder, *settings, "--", *flags]
    done = finish(start(arguments, devices=devices))
    assert done.status == 0, done.err
    # Beam's worker processes log to the same stream.
    assert done.err == "" or workers > 1
    assert f"{len(ROWS)} made" in done.out
    assert (tmp_path / "metadata.jsonl").read_bytes() == (plain / "metadata.jsonl").read_bytes()
    assert same(images_of(tmp_path), images_of(plain))
