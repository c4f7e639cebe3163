"""Whole runs with images: where they are read from, which are refused, and that all is made again."""

import base64
import io
import json
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file, save_file

from pipelines import depth, verify
from pipelines.cli import main
from pipelines.config.recorded import with_names
from pipelines.loading import library_of, make_engine
from pipelines.sources import input_images
from pipelines.trust import made_with
from sdjax.images.encode import read_parameters
from sdjax.jobs.input_images import read_file
from sdjax.jobs.job import Job, JobError
from sdjax.storage import read_jsonl
from tests import toys
from tests.checkpoints.test_depth_file import write_folder as write_depth
from tests.golden import conditioned

ROWS = [
    {"prompt": "a cat", "seed": 1, "image": "in/cat.png", "strength": 0.5},
    {"prompt": "a cat", "seed": 1, "image": "in/./cat.png", "strength": 0.5},
    {"prompt": "a cat", "seed": 2, "image": "in/cat.png", "mask_image": "in/mask.png", "keep_unmasked": "yes"},
    {"prompt": "a cat", "seed": 3, "controlnets": "tiny:0.5", "control_image": "in/edges.png"},
    {"prompt": "a cat", "seed": 4, "hires_scale": 2, "hires_steps": 1},
    {"prompt": "a cat", "seed": 5, "image": "in/turned.jpg"},
    {"prompt": "a cat", "seed": 6, "image": "in/gone.png"},
    {"prompt": "a cat", "seed": 7, "image": "in"},
    {"prompt": "a cat", "seed": 8, "image": "in/huge.png"},
    {"prompt": "a cat", "seed": 9, "image": "https://example.org/cat.png"},
    {"prompt": "a cat", "seed": 10, "image": "in/cat.png", "mask_image": "in/wide.png"},
    {"prompt": "a cat", "seed": 11, "image": "in/broken.png"},
    {"prompt": "a cat", "seed": 12, "image": "in/a, b.png", "strength": 1.0},
    {"prompt": "a cat", "seed": 13, "preview_every": 1, "upscaler": "nearest", "upscale_by": 2},
]
REASONS = {
    7: "gone.png: there is no such file",
    8: "is a folder",
    9: "100000",
    10: "https: is not read from",
    11: "wide.png",
    12: "truncated",
}


def write_files(folder: Path) -> None:
    folder.mkdir()
    for name, data in conditioned.FILES.items():
        (folder / name).write_bytes(data)
    (folder / "a, b.png").write_bytes(conditioned.FILES["cat.png"])
    (folder / "broken.png").write_bytes(conditioned.FILES["cat.png"][:-100])
    (folder / "wide.png").write_bytes(conditioned.png(np.full((16, 64), 255, np.uint8)))
    huge = bytearray(conditioned.FILES["cat.png"])
    huge[16:24] = (100_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(bytes(huge))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    PIL.Image.fromarray(conditioned.image("cat")[:, :24]).save(turned, "JPEG", exif=exif)
    (folder / "turned.jpg").write_bytes(turned.getvalue())


@pytest.fixture(scope="module")
def made(run_here, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("conditioned")
    toys.write_toy(root / "tiny", toys.TINY)
    conditioned.write_controls(root / "controls")
    write_files(root / "in")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    counts = run_here(
        root / "rows.jsonl", root / "out", model=str(root / "tiny"), width=32, height=32,
        **{"library.controlnets": str(root / "controls")},
    )  # fmt: skip
    assert (counts.rows, counts.rejected_rows, counts.made, counts.duplicates, counts.problems()) == (14, 6, 7, 1, [])
    return root


def test_images_are_found_beside_the_prompt_file_and_bad_ones_rejected_with_their_reason(made):
    rows = {int(row["seed"]): row for row in read_jsonl(str(made / "out" / "metadata.jsonl"))}
    assert rows[1]["input_image"] == str(made / "in" / "cat.png") and rows[4]["image_width"] == 64
    assert "turned by its EXIF orientation" in json.loads(rows[5]["pictures"])["notes"][0]
    assert "Denoising strength: 0.5" in str(read_parameters(made / "out" / rows[1]["file_name"], "x"))
    drawn = np.asarray(PIL.Image.open(made / "out" / rows[2]["file_name"]))
    assert np.array_equal(drawn[conditioned.mask() == 0], conditioned.image("cat")[conditioned.mask() == 0])
    rejects = {reject["line"]: reject["reason"] for reject in read_jsonl(str(made / "out" / "rejects.jsonl"))}
    assert rejects.keys() == REASONS.keys()
    for line, expected in REASONS.items():
        assert expected in rejects[line] and rejects[line].startswith(("image: ", "mask_image: "))


def test_an_image_that_is_gone_or_another_when_it_is_needed_costs_its_own_image_alone(
    run_here, made, tmp_path, monkeypatch
):
    reads: Counter[str] = Counter()

    def changing(path: str) -> bytes:
        reads[path] += 1
        if reads[path] > 1 and path.endswith("edges.png"):
            raise JobError(f"{path}: there is no such file")
        other = reads[path] > 1 and path.endswith("pose.png")
        return read_file(str(made / "in" / "cat.png") if other else path)

    monkeypatch.setattr(input_images, "read", changing)
    rows = [{"prompt": "a", "seed": 1, "image": f"{made}/in/{name}.png"} for name in ("cat", "edges", "pose")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Of another tile, so that an engine is made that reads so.
    counts = run_here(
        tmp_path / "rows.jsonl", tmp_path / "out", model=str(made / "tiny"), vae_tile=256, width=32, height=32
    )
    assert (counts.made, counts.failed, counts.problems()) == (1, 2, [])
    reasons = {reject["line"]: reject["reason"] for reject in read_jsonl(str(tmp_path / "out" / "rejects.jsonl"))}
    assert "there is no such file" in reasons[2] and "has changed since" in reasons[3]


def test_all_is_made_again_and_what_changed_since_is_named(made):
    given = made_with(str(made / "out"))
    [batch_size] = {row["batch_size"] for row in read_jsonl(str(made / "out" / "metadata.jsonl"))}
    engine = make_engine(with_names(given, {"batch_size": batch_size}))

    def regenerate() -> verify.Report:
        return verify.regenerate(str(made / "out"), lambda settings: engine, 1.0)

    report = regenerate()
    assert (report.remade, report.exact, report.findings) == (7, 7, ())
    planner, engine.planner = engine.planner, engine.planner._replace(pillow="0.0")
    report = regenerate()
    assert (report.exact, report.findings) == (7, ())
    engine.planner = planner
    (made / "in" / "edges.png").write_bytes(conditioned.FILES["pose.png"])
    weights = made / "controls" / "tiny" / "diffusion_pytorch_model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights)
    engine.list_files(library_of(given), input_images.read)
    [finding] = regenerate().findings
    assert "control_image" in finding.problem and "controlnets (tiny:0.5) is another file now" in finding.problem


def test_paths_are_relative_to_the_prompt_file_wherever_that_is():
    job = Job(prompt="a", image="a.png", controlnets="x; y", control_image="b/c.png; /d.png")
    assert input_images.located(job, "/rows/r.csv").image == "/rows/a.png"
    assert input_images.located(job, "/rows/r.csv").control_image == "/rows/b/c.png; /d.png"
    assert input_images.located(Job(prompt="a", image="https://x/y.png"), "/r.csv").image == "https://x/y.png"
    with pytest.raises(JobError, match="is not read from"):
        input_images.read("http://example.org/a.png")


def test_depth_maps_of_a_folder(tmp_path, capsys):
    write_files(tmp_path / "in")
    write_depth(tmp_path / "depth")
    arguments = ["depth", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(tmp_path / "depth")]
    assert main(arguments) == 1
    # Two are no images; two have sides that this estimator does not take.
    assert "7 made, 0 there, 4 failed" in " ".join(capsys.readouterr().out.split())
    written = PIL.Image.open(tmp_path / "out" / "cat.png.depth.png")
    assert written.size == (32, 32) and np.asarray(written).max() == 65535
    assert main(arguments) == 1
    assert "0 made, 7 there, 4 failed" in " ".join(capsys.readouterr().out.split())


BASE64 = base64.b64encode(conditioned.FILES["cat.png"]).decode()


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64[:40],
        base64.urlsafe_b64encode(bytes(range(256)) * 10_000).decode(),
        f"data:image/png;base64,{BASE64}",
        "Data:image/webp;base64,UklGR",
        base64.b64encode(b"\xff\xd8\xff" + bytes(30)).decode(),
    ],
)
@pytest.mark.parametrize("field", ["image", "mask_image", "depth_image"])
def test_an_image_given_as_base64_is_refused_by_what_it_is_and_not_repeated(field, text):
    job = Job(prompt="a cat", **{"image": "cat.png", field: text})
    with pytest.raises(JobError, match=f"^{field}: .* is not a path: base64 of an image is not supported") as error:
        input_images.located(job, "rows.jsonl")
    assert len(str(error.value)) < 250
    for read in (read_file, input_images.read):
        with pytest.raises(JobError, match="base64 of an image is not supported"):
            read(text)


def test_what_is_far_too_long_for_a_path_is_not_repeated():
    with pytest.raises(JobError, match="is not a path: it has 100004 letters") as error:
        read_file("x.y/" * 25_001)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("path", ["in/cat", "a" * 200, "/9j/cat", "iVBORw0KGgo", "gs://bucket/cat.png", "C:\\cat.png"])
def test_paths_are_paths_whatever_they_look_like(path):
    located = input_images.located(Job(prompt="a cat", image=path), "/here/rows.jsonl")
    assert located.image.endswith(path)


def test_depth_passes_over_companion_files_and_follows_links(tmp_path):
    for name in ("in/a.PNG", "in/._a.PNG", "in/__MACOSX/b.webp", "elsewhere/c.jpg", "in/d.depth.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "in" / "linked").symlink_to("../elsewhere")
    (tmp_path / "in" / "round").symlink_to(".")
    folder = str(tmp_path / "in")
    assert depth.images_in(folder) == [f"{folder}/a.PNG", f"{folder}/linked/c.jpg"]
    (tmp_path / "._x").mkdir()
    (tmp_path / "._x" / "a.png").touch()
    assert depth.images_in(str(tmp_path / "._x")) == [str(tmp_path / "._x" / "a.png")]
