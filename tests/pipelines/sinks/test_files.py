"""An output of loose files: what is listed, what counts as done, what is read and what is left alone."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.sinks import open_sink
from pipelines.sinks.files import FilesSink
from pipelines.sinks.sink import StoredItem, WriteResult
from sdjax.engine.engine import Result
from sdjax.images.encode import EncodeError, decode, encode, read_metadata
from sdjax.images.previews import Preview
from sdjax.jobs.a1111_text import a1111_text
from sdjax.storage import TEMPORARY, LocalStore, StorageError, open_store, write_whole
from tests.rights import without_rights
from tests.storage.folders import files_below

ID = "ab" + "0" * 30
# An output as version 0.3 left it, with previews that are small.
EARLIER = Path(__file__).parent / "output_of_0_3"


def sink_of(folder: Path | str) -> FilesSink:
    return FilesSink(str(folder), "png", "webp")


# --- Names ---


def test_the_images_that_are_there_are_listed_and_nothing_else(tmp_path):
    expected = set()
    for start, extension in (("ab", "png"), ("cd", "webp"), ("ef", "jpg")):
        image_id = start + "1" * 30
        name = f"images/{start}/{image_id}.{extension}"
        write_whole(str(tmp_path / name), start.encode() * 3)
        expected.add(StoredItem(image_id, "image", name, 6))
    for other in (
        "metadata.jsonl",
        f"{ID}.png",
        f"images/cd/{ID}.png",
        f"images/ab/{ID}.gif",
        f"images/ab/{ID}.png.part",
        f"images/ab/{TEMPORARY}{ID}.png",
        "images/ab/cat.png",
    ):
        write_whole(str(tmp_path / other), b"1")
    (tmp_path / f"images/ab/{'ab' + '2' * 30}.png").symlink_to(tmp_path / f"{ID}.png")
    for folder in (str(tmp_path), f"{tmp_path}/"):
        assert set(sink_of(folder).images()) == expected
        assert sink_of(folder).path(f"images/ab/{ID}.png") == f"{tmp_path}/images/ab/{ID}.png"


def test_nothing_is_listed_where_nothing_is(tmp_path):
    sink = sink_of(tmp_path / "gone")
    assert list(sink.images()) == list(sink.stored_items()) == [] and not sink.remove_leftovers()


def test_a_file_in_place_of_the_images_is_a_clear_error(tmp_path):
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(StorageError, match=rf"^{tmp_path}/images: "):
        list(sink_of(tmp_path).images())


@pytest.mark.parametrize("name", ["lost+found", "of others", "images/lost+found", "images/abc", "steps/others"])
def test_a_folder_that_is_not_ours_is_not_looked_into(shut, tmp_path, name):
    image = f"images/ab/{ID}.png"
    write_whole(image, b"123")
    (tmp_path / f"{TEMPORARY}1").touch()
    tmp_path.joinpath("images/ab", f"{TEMPORARY}2").touch()
    tmp_path.joinpath(f"{TEMPORARY}1").chmod(0o666)
    tmp_path.joinpath("images/ab").chmod(0o777)
    tmp_path.joinpath("images/ab", f"{TEMPORARY}2").chmod(0o666)
    shut(name)
    with without_rights():
        with pytest.raises(PermissionError):
            os.listdir(name)
        assert list(sink_of(".").images()) == [StoredItem(ID, "image", image, 3)]
        with LocalStore(".").exclusive(print):
            assert sorted(sink_of(".").remove_leftovers()) == [f"{TEMPORARY}1", f"images/ab/{TEMPORARY}2"]


def test_a_folder_of_images_that_can_not_be_listed_is_a_clear_error(shut):
    shut("images/ab")
    for use in (lambda: list(sink_of(".").images()), lambda: sink_of(".").remove_leftovers()):
        with without_rights(), pytest.raises(StorageError, match=r"images/ab: Permission denied"):
            use()


def test_folders_of_images_and_steps_may_be_on_another_disk_behind_a_link(tmp_path):
    (tmp_path / "other disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").symlink_to(tmp_path / "other disk")
    sink = sink_of(tmp_path / "out")
    for name in (f"images/ab/{ID}.png", f"images/ab/{TEMPORARY}1"):
        write_whole(str(tmp_path / "out" / name), b"123")
    assert sink.read(f"images/ab/{ID}.png") == b"123" and len(list(sink.images())) == 1
    assert sink.remove_leftovers() == (f"images/ab/{TEMPORARY}1",)


# --- Writing ---


@pytest.fixture(scope="module")
def result() -> Result:
    """The image of the earlier output that has previews, as an engine gives it."""
    [path] = EARLIER.glob("images/*/*.png")
    pixels = decode(path, "")
    small = np.ascontiguousarray(pixels[::2, ::2])
    previews = tuple(Preview(step, small, 255 - small) for step in range(2))
    return Result(pixels, read_metadata(path, ""), True, previews)


def test_an_image_is_written_after_its_previews_and_before_its_row(result, tmp_path):
    sink = sink_of(tmp_path)
    image_id = result.metadata["id"]
    [written] = sink.write([result])
    names = [f"{kind}/{image_id[:2]}/{image_id}.{ending}" for kind, ending in STEPS_AND_IMAGE]
    assert files_below(tmp_path) == sorted(names)
    times = [(tmp_path / name).stat().st_mtime_ns for name in names]
    assert times == sorted(times)
    sizes = [(tmp_path / name).stat().st_size for name in names]
    assert (written.id, written.problem, written.row["file_name"]) == (image_id, None, names[-1])
    assert [written.row[column] for column in ("steps_size", "animation_size", "file_size")] == sizes
    assert sink.complete_row(list(sink.images()), steps=False) is not None


STEPS_AND_IMAGE = (("steps", "png"), ("steps", "webp"), ("images", "png"))


def test_an_image_that_is_written_twice_leaves_the_output_as_it_was(result, tmp_path):
    sink = sink_of(tmp_path)
    first = list(sink.write([result]))
    before = {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)}
    assert list(sink.write([result])) == first
    assert {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)} == before


def test_an_image_that_its_format_can_not_hold_is_a_problem_and_its_neighbours_go_on(result, tmp_path):
    sink = FilesSink(str(tmp_path), "jpeg", "webp")
    long = result._replace(metadata={**result.metadata, "prompt": "a" * 100_000}, previews=())
    with pytest.raises(EncodeError) as error:
        encode(long.image, long.metadata, a1111_text(long.metadata), "jpeg")
    bad, good = sink.write([long, result])
    assert bad == WriteResult(result.metadata["id"], None, str(error.value))
    assert good.problem is None and (tmp_path / good.row["file_name"]).suffix == ".jpg"


def test_parts_of_the_manifest_are_joined_in_the_order_of_their_names_each_row_once(tmp_path):
    sink = sink_of(tmp_path)
    rows = [{"id": image_id, "file_name": "x"} for image_id in ("b1", "a2", "a1")]
    assert sink.write_rows("run", "b", rows[:1]) == 1
    assert sink.write_rows("run", "a", [*rows[1:], rows[1]]) == 2
    assert files_below(tmp_path) == [f"{TEMPORARY}run-a", f"{TEMPORARY}run-b"]
    sink.finish("run", ["b", "a"])
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a1", "a2", "b1"]


def test_a_sink_travels_as_it_is(tmp_path):
    assert pickle.loads(pickle.dumps(open_sink("s3://bucket/out", "webp", "gif"))) == FilesSink(
        "s3://bucket/out", "webp", "gif"
    )


# --- Outputs of earlier versions ---


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return shutil.copytree(EARLIER, tmp_path / "out")


def test_an_output_of_an_earlier_version_is_whole_and_done(earlier):
    sink = sink_of(earlier)
    assert list(sink.check()) == []
    [row] = sink.rows()
    stored = list(sink.stored_items())
    assert {each.kind for each in stored} == {"image", "steps", "row"} and {each.id for each in stored} == {row["id"]}
    [line] = (earlier / "metadata.jsonl").read_text().splitlines()
    assert sink.complete_row(stored, steps=True) == json.loads(line)
    assert sink.read(row["file_name"]) == (earlier / row["file_name"]).read_bytes()


def test_rows_are_written_byte_for_byte_as_by_an_earlier_version_also_when_they_are_read_from_images(earlier):
    sink = sink_of(earlier)
    before = (earlier / "metadata.jsonl").read_bytes()
    for _ in ("with the manifest", "without it"):
        stored = list(sink.stored_items())
        (earlier / "metadata.jsonl").unlink()
        sink.write_rows("run", "a", [sink.complete_row(stored, steps=True)])
        sink.finish("run", ["a"])
        assert (earlier / "metadata.jsonl").read_bytes() == before


def test_an_image_is_written_under_the_name_and_with_the_columns_of_an_earlier_version(result, tmp_path):
    [line] = (EARLIER / "metadata.jsonl").read_text().splitlines()
    [written] = sink_of(tmp_path).write([result])
    sizes = {column: written.row[column] for column in ("file_size", "steps_size", "animation_size")}
    assert json.dumps(written.row) == json.dumps({**json.loads(line), **sizes})
    assert files_below(tmp_path) == [name for name in files_below(EARLIER) if "/" in name]
    assert open_store(str(tmp_path)).get(written.row["file_name"])[:8] == b"\x89PNG\r\n\x1a\n"
