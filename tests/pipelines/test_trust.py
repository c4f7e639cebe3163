"""An output of a stranger: nothing is read outside of it, and nothing is loaded that the user has not allowed."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdjax
from pipelines import cli, grid, sheet
from pipelines.config import settings
from pipelines.config.sections import value_of
from pipelines.loading import make_engine
from pipelines.sinks.manifest_rows import image_name
from pipelines.trust import TrustError, allowed, made_with, reader, too_large
from pipelines.verify import regenerate
from sdjax.images.encode import decode, read_metadata
from sdjax.jobs.job import JobError
from sdjax.storage import StorageError, read_jsonl, write_jsonl


@pytest.fixture(scope="module")
def made(run_here, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("strange")
    (folder / "p.txt").write_text("a red apple\n")
    run_here(folder / "p.txt", folder / "out")
    return folder / "out"


@pytest.fixture
def out(made, tmp_path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(made, tmp_path / "out")


def set_in_summary(out: Path, key: str, value: object) -> None:
    summary = json.loads((out / "summary.json").read_text())
    section, _, name = key.partition(".")
    summary["config"][section][name] = value
    (out / "summary.json").write_text(json.dumps(summary))


def set_in_row(out: Path, **keys: object) -> None:
    [row] = read_jsonl(str(out / "metadata.jsonl"))
    write_jsonl(str(out / "metadata.jsonl"), [row | keys])


def set_in_image(out: Path, **keys: object) -> None:
    """Also in its row, so that these are at one."""
    [row] = read_jsonl(str(out / "metadata.jsonl"))
    path = out / row["file_name"]
    chunks = PngInfo()
    chunks.add_text("sdjax", json.dumps(read_metadata(path, "") | keys))
    Image.fromarray(decode(path, "")).save(path, pnginfo=chunks)
    set_in_row(out, **keys, file_size=path.stat().st_size)


def problems(out: Path, engine: sdjax.Engine) -> list[str]:
    return [finding.problem for finding in regenerate(str(out), lambda _: engine, 1.0, trusted=False).findings]


@pytest.mark.parametrize(
    "key, value",
    [
        ("model.name", "org/name"),
        ("library.loras", "/"),
        ("library.loras", "emoji"),  # which is bundled as a model alone
        ("model.vae", "/x.ckpt"),
        ("library.classifier", "../there"),
    ],
)
def test_what_a_summary_names_is_loaded_only_if_the_user_says_so(out, capsys, key, value):
    set_in_summary(out, "model.name", "emoji")
    set_in_summary(out, key, value)
    assert cli.main(["verify", str(out)]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"this output names {key} = {value!r}" in said and "--trust, if this output is yours" in said
    given = made_with(str(out))
    assert allowed(given, {}, trust=True, pickled=False) == given
    assert value_of(allowed(given, {key: "/here"}, trust=False, pickled=False), key) == "/here"
    with pytest.raises(TrustError, match="--sample 0"):
        allowed(given, {}, trust=False, pickled=False)


def test_pickled_files_are_never_read_because_an_output_says_so():
    given = settings.make({"model.pickled": True})
    assert not allowed(given, {}, trust=False, pickled=False).model.pickled
    assert allowed(given, {}, trust=False, pickled=True).model.pickled
    assert allowed(given, {}, trust=True, pickled=False).model.pickled


def test_input_images_outside_of_an_output_are_not_read(tmp_path):
    (tmp_path / "out" / "in").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "out" / "in" / "mine.png").write_bytes(b"mine")
    (tmp_path / "out" / "link.png").symlink_to(tmp_path / "secret.png")
    read = reader(str(tmp_path / "out"), trust=False)
    assert read(str(tmp_path / "out" / "in" / "mine.png")) == b"mine"
    for path in ("secret.png", "out/../secret.png", "out/link.png"):
        with pytest.raises(JobError, match="not in this output"):
            read(str(tmp_path / path))
    assert reader(str(tmp_path / "out"), trust=True)(str(tmp_path / "secret.png")) == b"secret"


def test_an_image_that_begins_with_one_from_outside_is_not_made_again(out, tiny_folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    set_in_image(out, input_image=str(tmp_path / "secret.png"), strength=0.5)
    engine = make_engine(made_with(str(out)), read=reader(str(out), trust=False))
    [problem] = problems(out, engine)
    assert "can't be made again" in problem and "is not in this output" in problem


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"batch_size": 1_000_000}, "a batch of 1000000 of its size has"),
        ({"batch_size": 0}, "batch_size = 0: expected"),
        ({"batch_size": "4"}, "batch_size = '4': expected int"),
        ({"dtype": "int4"}, "dtype = 'int4': expected one of float32"),
        ({"lora_mode": "x"}, "lora_mode = 'x': expected one of merged"),
        ({"vae_tile": "x"}, "vae_tile = 'x': expected int"),
        ({"prompt": None}, "prompt = None: expected text"),
        ({"sampler": 3}, "sampler = 3: expected"),
        ({"pictures": "[", "jaxlib": "0"}, "not what generate writes"),
        ({"seed": "x" * 1000}, "seed = 'xxx"),
    ],
)
def test_metadata_of_wrong_types_and_sizes_are_told_and_nothing_is_made_of_them(out, tiny, keys, words):
    set_in_image(out, **keys)
    found = problems(out, sdjax.Engine(tiny, batch_size=1))
    assert any(words in problem for problem in found) and all(len(problem) < 1000 for problem in found), found


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"file_name": "../secret.png"}, "file_name = '../secret.png': expected images/ab"),
        ({"file_name": "/etc/passwd"}, "file_name = '/etc/passwd'"),
        ({"file_name": image_name("../" + "a" * 29, "png")}, "file_name ="),
        ({"file_name": ["x"]}, "file_name ="),
        ({"prompt": None}, "prompt = None: expected text"),
        ({"width": 0}, "width = 0: expected 1 to"),
        ({"height": True}, "height = True"),
        ({"width": 10**9}, "width = 1000000000: expected 1 to"),
        ({"seed": "x"}, "seed = 'x': expected a whole number"),
        ({"steps": {"a": 1}}, "steps is a dict"),
        ({"sampler": [1]}, "sampler is a list"),
    ],
)
def test_rows_that_no_run_writes_are_named_by_their_line(out, tiny, tmp_path, keys, words):
    set_in_row(out, **keys)
    (tmp_path / "secret.png").write_bytes(next(out.rglob("*.png")).read_bytes())
    with pytest.raises(StorageError, match=r"metadata\.jsonl, line 1: not what generate writes") as error:
        sheet.write(str(out), str(tmp_path / "sheet.png"), columns=2, limit=2)
    assert words in str(error.value)
    with pytest.raises(StorageError, match="line 1: not what generate writes"):
        grid.write(str(out), str(tmp_path / "grid.png"), grid.Axes(None, None, None), {})
    assert words in problems(out, sdjax.Engine(tiny, batch_size=1))[0]


def test_an_image_of_extreme_shape_leaves_a_sheet_of_bounded_size(out, tmp_path):
    set_in_row(out, width=1, height=60_000)
    assert sheet.write(str(out), str(tmp_path / "sheet.png"), columns=2, limit=2)[0] == 1
    assert (tmp_path / "sheet.png").stat().st_size < 1 << 20


def test_a_line_that_never_ends_is_not_read_to_its_end(out):
    with (out / "metadata.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StorageError, match="line 1: longer than"):
        list(read_jsonl(str(out / "metadata.jsonl")))


@pytest.mark.parametrize("what", ["the file", "its folder"])
def test_images_that_are_links_are_not_followed(out, tiny, tmp_path, what):
    path = next(out.glob("images/*/*.png"))
    moved = path if what == "the file" else path.parent
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a link"):
        sheet.write(str(out), str(tmp_path / "sheet.png"), columns=2, limit=2)
    with pytest.raises(StorageError, match="is a link"):
        grid.write(str(out), str(tmp_path / "grid.png"), grid.Axes(None, None, None), {})
    assert problems(out, sdjax.Engine(tiny, batch_size=1)) == ["stands in metadata.jsonl, but there is no such image"]


@pytest.mark.parametrize("path", ["gs://evil/x.png", "s3://evil/x.png", "hdfs://evil/x.png", "https://evil/x.png"])
def test_addresses_are_not_inside_of_a_local_output(out, monkeypatch, path):
    monkeypatch.chdir(out)
    with pytest.raises(JobError, match="not in this output"):
        reader(".", trust=False)(path)
    with pytest.raises(JobError, match="not in this output"):
        reader("gs://mine/out", trust=False)("gs://mine/out/../x.png")


@pytest.mark.parametrize(
    "keys",
    [{}, {"hires_scale": 4.0}, {"upscale_by": 4.0}, {"image_width": 8192}, {"hires_scale": 2.0, "upscale_by": 2.0}],
)
def test_a_batch_is_as_large_as_what_becomes_of_it(keys):
    of_one = {"batch_size": 1, "width": 512, "height": 512}
    assert too_large(of_one) is None
    assert (too_large({"batch_size": 16, "width": 2048, "height": 2048, **keys}) is None) == (not keys)


@pytest.mark.parametrize("name", ["images/*/*.png", "metadata.jsonl", "summary.json"])
def test_what_is_no_file_is_not_waited_for(out, tiny, tmp_path, name):
    path = next(out.glob(name))
    path.unlink()
    os.mkfifo(path)
    if name.startswith("images"):
        assert "there is no such image" in problems(out, sdjax.Engine(tiny, batch_size=1))[0]
    with pytest.raises(StorageError, match="is a pipe or a device"):
        if name == "summary.json":
            made_with(str(out))
        sheet.write(str(out), str(tmp_path / "sheet.png"), columns=2, limit=2)


def test_a_file_larger_than_any_image_is_not_read(out, tiny, tmp_path):
    path = next(out.glob("images/*/*.png"))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(StorageError, match="which no image takes"):
        sheet.write(str(out), str(tmp_path / "sheet.png"), columns=2, limit=2)
    assert any("which no image takes" in problem for problem in problems(out, sdjax.Engine(tiny, batch_size=1)))


def test_long_values_are_not_shown_whole(out):
    set_in_summary(out, "library.loras", "x" * 10**6)
    with pytest.raises(TrustError) as error:
        allowed(made_with(str(out)), {}, trust=False, pickled=False)
    assert len(str(error.value)) < 2000
