"""The manifest is written in parts that are joined, and not at all where rows are missing."""

import json

import pytest

from pipelines.elements import Count, ManifestRow, counts
from pipelines.runners import RunnerError
from pipelines.sinks.output import temporary_name
from pipelines.sources.prompts import Reject
from pipelines.transforms import manifest
from sdjax.storage import open_store, read_jsonl


def row(image_id: str) -> ManifestRow:
    return ManifestRow(image_id, {"file_name": f"{image_id}.png", "id": image_id})


def rows(out) -> list[dict]:
    return list(read_jsonl(str(out / "metadata.jsonl")))


def test_a_part_is_sorted_and_has_each_image_once(run, tmp_path):
    [part] = manifest.write_part("ab", [row("abc"), row("abb"), row("abc")], run)
    assert part == ("ab", 2)
    assert [each["id"] for each in open_store(str(tmp_path)).read_jsonl(temporary_name("run", "ab"))] == ["abb", "abc"]


def test_parts_are_joined_in_the_order_of_ids(run, tmp_path):
    parts = [*manifest.write_part("ff", [row("ff0")], run), *manifest.write_part("00", [row("001")], run)]
    manifest.finish([*parts, *counts(rows=2, wanted=2, made=1), Count("made", 1)], run)
    assert [each["id"] for each in rows(tmp_path)] == ["001", "ff0"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["counts"] == manifest.counted(run)._asdict()
    assert manifest.counted(run).made == 2 and not manifest.counted(run).problems()


def test_rejects_are_in_the_order_of_the_files_and_go_when_there_are_none(run, tmp_path):
    rejects = [Reject("b.txt", 1, "x", "bad"), Reject("a.txt", 10, "y", "bad"), Reject("a.txt", 9, "z", "bad")]
    manifest.finish([*rejects, *counts(rows=3, rejected_rows=3)], run)
    found = read_jsonl(str(tmp_path / "rejects.jsonl"))
    assert [(each["source"], each["line"]) for each in found] == [("a.txt", 9), ("a.txt", 10), ("b.txt", 1)]
    manifest.finish(counts(rows=3), run)
    assert not (tmp_path / "rejects.jsonl").exists()


def test_a_manifest_that_would_lack_rows_is_not_written(run, tmp_path):
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    [part] = manifest.write_part("ab", [row("ab")], run)
    with pytest.raises(RunnerError, match="2 images were made or there, but the runner brought the metadata of 1"):
        manifest.finish([part, *counts(made=1, there=1, wanted=2)], run)
    assert (tmp_path / "metadata.jsonl").read_text() == "{}\n" and not (tmp_path / "summary.json").exists()
    manifest.finish([part, *counts(made=1)], run)
    assert rows(tmp_path) == [{"file_name": "ab.png", "id": "ab"}]


def test_a_run_that_did_not_come_to_its_end_says_so(run):
    with pytest.raises(RunnerError, match="not all was done"):
        manifest.counted(run)


def test_images_that_are_not_accounted_for_are_a_problem():
    made = manifest.Counts(**{**dict.fromkeys(manifest.Counts._fields, 0), "wanted": 2, "made": 1})
    assert made.problems() == ["2 images wanted, but 1 accounted for"]
