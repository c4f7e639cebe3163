"""What an output holds is found, and only what is not whole there is made."""

import pytest

from pipelines.elements import ImageFile, ManifestRow, OutputPart, PlannedJob, StepsFile, counts
from pipelines.sources.prompts import Reject
from pipelines.storage import StorageError, image_path, write_jsonl, write_whole
from pipelines.transforms.resume import existing, missing

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
FILE = ImageFile(ID, image_path("out", ID, "png"), 4)


def job(line: int = 1, **fields) -> PlannedJob:
    return PlannedJob(ID, {"prompt": "a", **fields}, "k", {}, "", "p.txt", line, cut=False)


def test_a_job_of_which_there_is_nothing_is_left(run):
    assert list(missing(ID, [job()], run)) == [job()]


def test_of_several_rows_that_ask_for_an_image_the_first_is_left_and_the_others_are_duplicates(run):
    assert list(missing(ID, [job(3), job(1), job(2)], run)) == [job(1), *counts(duplicates=2)]


def test_an_image_whose_file_has_the_size_that_its_row_states_is_there(run):
    row = ManifestRow(ID, ROW)
    assert list(missing(ID, [row, job(), FILE], run)) == [row, *counts(there=1)]
    assert list(missing(ID, [row, FILE], run)) == [row]  # and is not forgotten where no row asks for it


def test_an_image_of_another_size_is_made_again(run):
    assert list(missing(ID, [ManifestRow(ID, ROW), job(), FILE._replace(size=5)], run)) == [job()]


def test_a_damaged_image_that_nobody_asks_for_is_a_reject(run):
    reject, count = missing(ID, [FILE._replace(size=5), ManifestRow(ID, ROW)], run)
    assert isinstance(reject, Reject) and reject.source == FILE.path and [count] == list(counts(damaged=1))


def test_kept_steps_that_are_asked_for_have_to_be_there(run):
    row = ManifestRow(ID, {**ROW, "steps_size": 3, "animation_size": 2})
    wants_steps, strip, animation = job(preview_every=1), StepsFile(ID, "png", 3), StepsFile(ID, "webp", 2)
    assert list(missing(ID, [row, FILE, strip, wants_steps], run)) == [wants_steps]
    assert list(missing(ID, [row, FILE, strip, animation, wants_steps], run)) == [row, *counts(there=1)]


def test_files_and_rows_of_an_output_are_found(run, tmp_path):
    assert list(existing(OutputPart(0), run)) == []
    write_whole(image_path(str(tmp_path), ID, "png"), b"data")
    write_jsonl(str(tmp_path / "metadata.jsonl"), [ROW])
    assert list(existing(OutputPart(0), run)) == [
        ImageFile(ID, image_path(str(tmp_path), ID, "png"), 4),
        ManifestRow(ID, ROW),
    ]
    assert list(existing(OutputPart(1), run)) == []


def test_a_manifest_that_is_none_stops_the_run_and_says_what_to_do(run, tmp_path):
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(StorageError, match=r"line 1: .*delete the file, and it is made anew"):
        list(existing(OutputPart(0), run))
