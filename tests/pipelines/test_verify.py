import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

import sdjax
from pipelines.config import settings
from pipelines.sinks.manifest_rows import image_name
from pipelines.trust import made_with
from pipelines.verify import Report, Settings, regenerate, sampled
from sdjax.engine.engine import Result
from sdjax.engine.passes import Task
from sdjax.images.encode import FORMATS, decode, encode, read_metadata
from sdjax.jobs.a1111_text import a1111_text
from sdjax.storage import StorageError, read_jsonl, write_jsonl


@pytest.fixture(scope="module")
def made(run_here, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    (folder / "p.txt").write_text("a red apple\nthe cat\na castle\n")
    run_here(folder / "p.txt", folder / "out")
    return folder / "out"


@pytest.fixture
def out(made, tmp_path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture(scope="module")
def check(tiny):
    """Verifies an output, all of it or a share."""
    engine = sdjax.Engine(tiny, batch_size=1)

    def check(out: Path, share: float = 1.0) -> Report:
        def engine_for(settings: Settings) -> sdjax.Engine:
            assert (settings["batch_size"], settings["dtype"], settings["vae_tile"]) == (1, "float32", 0)
            return engine

        return regenerate(str(out), engine_for, share)

    return check


def rows_of(out: Path) -> list[dict]:
    return list(read_jsonl(str(out / "metadata.jsonl")))


def rewrite(out: Path, rows: list[dict]) -> None:
    write_jsonl(str(out / "metadata.jsonl"), rows)


def problems(report: Report) -> list[str]:
    return [finding.problem for finding in report.findings]


def test_an_output_as_it_was_left_is_the_same_to_the_last_byte(made, check):
    assert check(made) == Report(images=3, remade=3, exact=3, other=0, findings=())


def test_a_share_is_chosen_by_id_and_nothing_is_made_of_a_share_of_none(made, check):
    assert check(made, 0.0) == Report(images=3, remade=0, exact=0, other=0, findings=())
    assert not sampled("f" * 32, 0.99) and sampled("f" * 32, 1.0) and sampled("0" * 32, 0.01)


def test_a_tampered_pixel_is_found(out, check):
    row = rows_of(out)[0]
    path = out / row["file_name"]
    pixels = decode(path, "").copy()
    pixels[5, 5, 1] ^= 1
    metadata = read_metadata(path, "")
    path.write_bytes(encode(pixels, metadata, a1111_text(metadata), "png"))
    report = check(out)
    assert problems(report) == ["made again it is not the same"] and report.exact == 2
    assert row["id"] in report.findings[0].file


def test_images_that_have_changed_places_are_found(out, check):
    one, other, _ = (out / row["file_name"] for row in rows_of(out))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    assert problems(check(out)) == ["its own metadata differ from its row in metadata.jsonl"] * 2
    # Also if the manifest goes with them.
    one, other, third = rows_of(out)
    names = one.pop("file_name"), other.pop("file_name")
    rewrite(out, [{"file_name": names[1], **one}, {"file_name": names[0], **other}, third])
    assert all("it is the image of another name" in problem for problem in problems(check(out)))
    assert len(problems(check(out))) == 2


@pytest.mark.parametrize("field, value", [("prompt", "the dog"), ("seed", 1), ("steps", 3)])
def test_tampered_metadata_are_found(out, check, field, value):
    rows = rows_of(out)
    rows[1][field] = value
    rewrite(out, rows)
    assert problems(check(out)) == ["its own metadata differ from its row in metadata.jsonl"]
    # Also if the image says the same.
    path = out / rows[1]["file_name"]
    metadata = {**read_metadata(path, ""), field: value}
    path.write_bytes(encode(decode(path, ""), metadata, a1111_text(metadata), "png"))
    assert len(problems(check(out))) == 1


def test_a_missing_image_and_one_too_many_are_found(out, check):
    rows = rows_of(out)
    rewrite(out, rows[1:])
    assert problems(check(out)) == ["is not in metadata.jsonl; run the same generate command again"]
    rewrite(out, rows)
    (out / rows[0]["file_name"]).unlink()
    report = check(out)
    assert problems(report) == ["stands in metadata.jsonl, but there is no such image"] and report.images == 2


def test_a_truncated_image_is_found(out, check):
    path = out / rows_of(out)[0]["file_name"]
    path.write_bytes(path.read_bytes()[:-20])
    [problem] = problems(check(out))
    assert "a truncated image" in problem and "delete it and run the same generate command again" in problem


def test_a_row_that_stands_twice_and_a_manifest_that_is_gone_are_found(out, check):
    rows = rows_of(out)
    rewrite(out, [*rows, rows[0]])
    assert problems(check(out)) == ["stands twice in metadata.jsonl"]
    (out / "metadata.jsonl").unlink()
    assert problems(check(out))[0] == "is missing; run the same generate command again"


def test_images_of_another_model_are_told_from_those(made, sd2):
    report = regenerate(str(made), lambda *_: sdjax.Engine(sd2, batch_size=1), 1.0)
    assert report == Report(images=3, remade=0, exact=0, other=3, findings=())


def add(out: Path, pixels: np.ndarray, metadata: dict, format_name: str) -> str:
    """Puts an image of this name and its row into an output; gives its file name."""
    name = image_name(metadata["id"], FORMATS[format_name].extension)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(encode(pixels, metadata, a1111_text(metadata), format_name))
    row = {"file_name": name, **read_metadata(out / name, "")}
    rewrite(out, [each for each in rows_of(out) if each["file_name"] != name] + [row])
    return name


@pytest.mark.parametrize("format_name", ["png", "jpeg"])
@pytest.mark.parametrize("inverted", [False, True])
def test_what_another_version_made_is_compared_but_for_rounding(out, check, format_name, inverted):
    row = rows_of(out)[0]
    metadata = {**read_metadata(out / row["file_name"], ""), "id": "0" * 32, "jaxlib": "0.9.0"}
    pixels = decode(out / row["file_name"], "")
    changed = 255 - pixels if inverted else np.where(pixels < 255, pixels + 1, pixels).astype(np.uint8)
    name = add(out, changed, metadata, format_name)
    report = check(out)
    assert report.images == report.remade == 4 and report.exact == 3
    expected = [(str(out / name), "made again with another jaxlib it differs by more than rounding")]
    assert [tuple(finding) for finding in report.findings] == (expected if inverted else [])


def test_another_version_of_what_a_package_adds_is_named(out, check):
    row = rows_of(out)[0]
    package = "sdjax.samplers ralston: sdjax-examples 1.0 sha256 0"
    metadata = {**read_metadata(out / row["file_name"], ""), "id": "0" * 32, "extensions": package}
    add(out, 255 - decode(out / row["file_name"], ""), metadata, "png")
    assert problems(check(out)) == [f"made again with another {package} it differs by more than rounding"]


def test_each_of_several_images_of_one_job_is_compared(out, check):
    row = rows_of(out)[0]
    metadata = read_metadata(out / row["file_name"], "")
    pixels = decode(out / row["file_name"], "")
    add(out, pixels, {**metadata, "id": "0" * 32, "jaxlib": "0.9.0"}, "png")
    bad = add(out, 255 - pixels, {**metadata, "id": "f" * 32, "jaxlib": "0.8.0"}, "png")
    report = check(out)
    assert report.remade == 5 and report.exact == 4
    assert [finding.file for finding in report.findings] == [str(out / bad)]


def test_what_can_not_be_made_again_is_told_and_ends_nothing(out, check, monkeypatch):
    nothing = np.zeros((0, 0, 3), np.uint8)

    def run(self: sdjax.Engine, tasks: Iterable[Task]) -> Iterator[Result]:
        return (Result(nothing, task.metadata, False, problem=MemoryError("out of memory")) for task in tasks)

    monkeypatch.setattr(sdjax.Engine, "run", run)
    report = check(out)
    assert report.remade == 0 and problems(report) == ["can't be made again: out of memory"] * 3


def test_metadata_that_lack_what_it_takes_are_told(out, check):
    row = rows_of(out)[0]
    metadata = read_metadata(out / row["file_name"], "")
    del metadata["batch_size"]
    add(out, decode(out / row["file_name"], ""), metadata, "png")
    assert problems(check(out)) == ["its metadata lack batch_size"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"config": 3}',
        '{"config": {"model": 3}}',
        '{"config": {"engine": {"batch_size": "4"}}}',
        "[" * 5000,
    ],
)
def test_a_summary_that_is_none_is_named(out, text):
    (out / "summary.json").write_text(text)
    with pytest.raises(StorageError, match=r"summary\.json is not what generate writes"):
        made_with(str(out))


def test_the_model_is_what_the_last_run_was_told(made, tiny_folder):
    assert made_with(str(made)) == settings.make({"model": str(tiny_folder), "engine.batch_size": 1})
    assert json.loads((made / "summary.json").read_text())["config"]["model"]["name"] == str(tiny_folder)
