"""What counts as done: whole files of the right image, and the steps that were asked for. The rest is made again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.sinks import open_sink
from sdjax.images.encode import decode
from sdjax.storage import read_jsonl, write_jsonl


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    path.write_text("a red apple\nthe cat\n")
    return path


@pytest.fixture(scope="module")
def made(run_here, prompts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    run_here(prompts, out)
    return out


@pytest.fixture
def out(made, tmp_path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(made, tmp_path / "out")


def rows_of(out: Path) -> list[dict]:
    return list(read_jsonl(str(out / "metadata.jsonl")))


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def overwritten(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


DAMAGES = pytest.mark.parametrize("damage", [empty, cut, overwritten])


@pytest.mark.parametrize("manifest", ["there", "gone", "without sizes"])
@DAMAGES
def test_an_image_that_is_not_the_one_that_was_written_is_made_again(run_here, prompts, made, out, damage, manifest):
    """Also where the row that states its size is not there, as after a kill, or is of an earlier version."""
    one, other = (out / row["file_name"] for row in rows_of(out))
    damage(one, other)
    if manifest == "gone":
        (out / "metadata.jsonl").unlink()
    elif manifest == "without sizes":
        of_before = [{name: value for name, value in row.items() if "_size" not in name} for row in rows_of(out)]
        write_jsonl(str(out / "metadata.jsonl"), of_before)
    counts = run_here(prompts, out)
    assert (counts.made, counts.there, counts.damaged) == (1, 1, 0) and not counts.problems()
    assert files_of(out) | {"summary.json": b""} == files_of(made) | {"summary.json": b""}


def test_a_row_states_the_size_of_its_file_and_a_rerun_opens_none(run_here, prompts, out):
    for row in rows_of(out):
        path = out / row["file_name"]
        assert row["file_size"] == path.stat().st_size and (row["steps_size"], row["animation_size"]) == (0, 0)
        path.write_bytes(bytes(path.stat().st_size))  # what verify is for, which reads all
    assert run_here(prompts, out).there == 2


@DAMAGES
def test_a_damaged_image_that_no_row_asks_for_is_told_and_not_among_the_rows(run_here, made, out, damage, tmp_path):
    kept, spoiled = rows_of(out)
    damage(out / spoiled["file_name"], out / kept["file_name"])
    (tmp_path / "one.txt").write_text(kept["prompt"])
    counts = run_here(tmp_path / "one.txt", out)
    assert (counts.made, counts.there, counts.damaged) == (0, 1, 1) and not counts.problems()
    assert rows_of(out) == [kept]
    [reject] = read_jsonl(str(out / "rejects.jsonl"))
    assert reject["source"] == str(out / spoiled["file_name"]) and "run its prompts again" in reject["reason"]


def test_an_old_manifest_that_names_an_image_twice_leaves_one_row(run_here, prompts, made, out):
    write_jsonl(str(out / "metadata.jsonl"), [*rows_of(out), *rows_of(out)])
    run_here(prompts, out)
    assert rows_of(out) == rows_of(made)


# --- Previews ---


@pytest.fixture(scope="module")
def with_steps(run_here, prompts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("steps") / "out"
    run_here(prompts, out, preview_every=1)
    return out


def gone(out: Path) -> None:
    shutil.rmtree(out / "steps")


def strip_gone(out: Path) -> None:
    next(out.glob("steps/*/*.png")).unlink()


def animation_empty(out: Path) -> None:
    next(out.glob("steps/*/*.webp")).write_bytes(b"")


@pytest.mark.parametrize("damage, made_again", [(gone, 2), (strip_gone, 1), (animation_empty, 1)])
def test_previews_that_are_missing_are_made_again(run_here, prompts, with_steps, tmp_path, damage, made_again):
    out = shutil.copytree(with_steps, tmp_path / "out")
    damage(out)
    counts = run_here(prompts, out, preview_every=1)
    assert (counts.made, counts.there) == (made_again, 2 - made_again)
    assert files_of(out) | {"summary.json": b""} == files_of(with_steps) | {"summary.json": b""}
    assert run_here(prompts, out, preview_every=1).there == 2


def test_another_kind_of_animation_is_made_where_it_is_asked_for(run_here, prompts, with_steps, tmp_path):
    out = shutil.copytree(with_steps, tmp_path / "out")
    assert run_here(prompts, out, preview_every=1, animation="gif").made == 2
    assert len(list(out.glob("steps/*/*.gif"))) == 2
    assert run_here(prompts, out, preview_every=1, animation="gif").there == 2


def test_after_a_kill_before_the_manifest_whole_images_and_steps_are_done(run_here, prompts, with_steps, tmp_path):
    out = shutil.copytree(with_steps, tmp_path / "out")
    (out / "metadata.jsonl").unlink()
    assert run_here(prompts, out, preview_every=1).there == 2
    assert rows_of(out) == rows_of(with_steps)


# --- verify ---


@pytest.fixture
def problems(run_here, tiny) -> Callable[[Path], list[str]]:
    """What verify finds without making anything again."""
    return lambda out: [finding.problem for finding in open_sink(str(out)).check()]


def test_verify_reads_all_of_every_file(out, problems):
    row = rows_of(out)[0]
    path = out / row["file_name"]
    assert problems(out) == []
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"its row states {row['file_size']}" in problems(out)[0]
    data = bytearray(path.read_bytes()[:-1])
    data[-40] ^= 1  # among the pixels
    path.write_bytes(data)
    assert "a damaged image" in problems(out)[0]


def test_verify_finds_steps_that_are_missing(with_steps, tmp_path, problems):
    out = shutil.copytree(with_steps, tmp_path / "out")
    assert problems(out) == [] and decode(next(out.glob("steps/*/*.png")), "").any()
    strip_gone(out)
    assert problems(out) == ["its previews are missing or of another size; run the same generate command again"]


def test_a_row_that_states_no_sizes_of_steps_has_none(run_here, prompts, with_steps, tmp_path):
    out = shutil.copytree(with_steps, tmp_path / "out")
    kept = [
        {name: value for name, value in row.items() if not name.startswith(("steps_s", "anim"))} for row in rows_of(out)
    ]
    write_jsonl(str(out / "metadata.jsonl"), kept)
    assert run_here(prompts, out, preview_every=1).made == 2


def test_verify_reads_previews_whole(with_steps, tmp_path, problems):
    out = shutil.copytree(with_steps, tmp_path / "out")
    strips, animations = (sorted(out.glob(f"steps/*/{pattern}")) for pattern in ("*.png", "*.webp"))
    for path in (strips[0], animations[-1]):  # of two images
        data = path.read_bytes()
        kept = len(data) // 4  # a frame of WebP that is zeros from its middle on can be read
        path.write_bytes(data[:kept] + bytes(len(data) - kept))
    assert [": a damaged" in problem for problem in problems(out)] == [True, True]
