"""What an output holds is found, and only what is not whole there is made."""

import pytest

from pipelines.elements import ManifestRow, OutputPart, PlannedJob, counts
from pipelines.sinks.files import steps_name
from pipelines.sinks.manifest_rows import image_name
from pipelines.sinks.sink import StoredItem
from pipelines.sources.prompts import Reject
from pipelines.transforms.resume import existing, missing
from sdjax.storage import StorageError, open_store

ID = "ab" + 30 * "0"
ROW = {
    "file_name": f"images/ab/{ID}.png",
    "id": ID,
    "file_size": 4,
    "prompt": "a",
    "width": 8,
    "height": 8,
    "seed": "1",
}
FILE = StoredItem(ID, "image", image_name(ID, "png"), 4)


def stored(row: dict) -> StoredItem:
    return StoredItem(ID, "row", row["file_name"], row=row)


def job(line: int = 1, **fields) -> PlannedJob:
    return PlannedJob(ID, {"prompt": "a", **fields}, "k", {}, "", "p.txt", line, cut=False)


def test_a_job_of_which_there_is_nothing_is_left(run):
    assert list(missing(ID, [job()], run)) == [job()]


def test_of_several_rows_that_ask_for_an_image_the_first_is_left_and_the_others_are_duplicates(run):
    assert list(missing(ID, [job(3), job(1), job(2)], run)) == [job(1), *counts(duplicates=2)]


def test_an_image_whose_file_has_the_size_that_its_row_states_is_there(run):
    there = ManifestRow(ID, ROW)
    assert list(missing(ID, [stored(ROW), job(), FILE], run)) == [there, *counts(there=1)]
    assert list(missing(ID, [stored(ROW), FILE], run)) == [there]  # and is not forgotten where no row asks for it


def test_an_image_of_another_size_is_made_again(run):
    assert list(missing(ID, [stored(ROW), job(), FILE._replace(size=5)], run)) == [job()]


def test_a_damaged_image_that_nobody_asks_for_is_a_reject(run):
    reject, count = missing(ID, [FILE._replace(size=5), stored(ROW)], run)
    assert (
        isinstance(reject, Reject) and reject.source == f"{run.out}/{FILE.name}" and [count] == list(counts(damaged=1))
    )


def test_previews_that_are_asked_for_have_to_be_there(run):
    row = {**ROW, "steps_size": 3, "animation_size": 2}
    strip, animation = (
        StoredItem(ID, "steps", steps_name(ID, ending), size) for ending, size in (("png", 3), ("webp", 2))
    )
    wants_steps = job(preview_every=1)
    assert list(missing(ID, [stored(row), FILE, strip, wants_steps], run)) == [wants_steps]
    found = list(missing(ID, [stored(row), FILE, strip, animation, wants_steps], run))
    assert found == [ManifestRow(ID, row), *counts(there=1)]


def test_files_and_rows_of_an_output_are_found(run, tmp_path):
    assert list(existing(OutputPart(0), run)) == []
    store = open_store(str(tmp_path))
    store.put(FILE.name, b"data")
    store.write_jsonl("metadata.jsonl", [ROW])
    assert list(existing(OutputPart(0), run)) == [FILE, stored(ROW)]
    assert list(existing(OutputPart(1), run)) == []


def test_a_manifest_that_is_none_stops_the_run_and_says_what_to_do(run, tmp_path):
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(StorageError, match=r"line 1: .*delete the file, and it is made again"):
        list(existing(OutputPart(0), run))
