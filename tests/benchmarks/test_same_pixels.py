"""The jobs of `benchmarks.same_pixels` cover what there is, and its comparison finds one changed pixel."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.same_pixels.comparison import NEW, OTHER, differences
from benchmarks.same_pixels.files import RECORDED_LORAS
from benchmarks.same_pixels.jobs import FIRST_SEED, RUNS, Row, Run
from benchmarks.same_pixels.runs import results_of
from sdjax.diffusion.inpaint import FILLINGS
from sdjax.diffusion.noise import SOURCES
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.diffusion.samplers import MULTISTEP_STARTS, SAMPLERS
from sdjax.diffusion.schedules import SCHEDULES
from sdjax.diffusion.timestep_spacing import SPACINGS
from sdjax.images.fit import RESIZE_MODES
from sdjax.images.preprocessors import PREPROCESSORS
from sdjax.jobs.canonical import PIXEL_UPSCALERS
from sdjax.jobs.job import EMPHASES, FIELDS
from sdjax.text.tokenize_prompt import SYNTAXES

ROWS = [row for run in RUNS for row in run.rows]
DEFAULTS = {"noise_source": "threefry", "prompt_syntax": "a1111"}


def values_of(field: str) -> set[Any]:
    """All that rows say of a field, and its default if a row leaves it open."""
    return {row.fields.get(field, DEFAULTS.get(field)) for row in ROWS}


def test_every_field_of_a_job_is_used() -> None:
    assert {name for row in ROWS for name in row.fields} >= set(FIELDS)


@pytest.mark.parametrize(
    ("field", "known"),
    [
        ("sampler", SAMPLERS),
        ("schedule", SCHEDULES),
        ("timestep_spacing", SPACINGS),
        ("multistep_start", MULTISTEP_STARTS),
        ("noise_source", SOURCES),
        ("prompt_syntax", SYNTAXES),
        ("emphasis", EMPHASES),
        ("resize_mode", RESIZE_MODES),
        ("inpaint_fill", FILLINGS),
        ("control_preprocessor", [*PREPROCESSORS, "depth"]),
        ("hires_upscaler", [*LATENT_UPSCALERS, *PIXEL_UPSCALERS, "esrgan"]),
        ("upscaler", [*PIXEL_UPSCALERS, "esrgan", "compact", "ncnn", "x4", "x2"]),
    ],
)
def test_every_choice_of_a_field_is_used(field: str, known: Iterable[str]) -> None:
    assert values_of(field) >= set(known)


def test_every_recorded_lora_is_used() -> None:
    with np.load(RECORDED_LORAS) as recorded:
        cases = {name.split("/")[0].replace(",", "").replace(" ", "-") for name in recorded.files}
    assert {str(row.fields.get("loras", "")).partition(":")[0] for row in ROWS} >= cases


def test_a_seed_says_of_which_row_an_image_is() -> None:
    for run in RUNS:
        seeds = [row.fields["seed"] for row in run.rows if "seed" in row.fields]
        assert len(seeds) == len(set(seeds)) >= len(run.rows) - 1


# --- The comparison ---


def made(folder: Path, shade: int = 7, reject: str = "") -> Path:
    """An output of two rows: an image with previews, and one whose blue is `shade` in one pixel, or a reject."""
    (folder / "images").mkdir(parents=True)
    (folder / "steps").mkdir()
    pixels = np.zeros((4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    Image.fromarray(pixels + 1).save(folder / "steps" / "a.png")
    rows = [{"seed": str(FIRST_SEED), "file_name": "images/a.png", "prompt": "a", "steps": 3}]
    if reject:
        (folder / "rejects.jsonl").write_text(json.dumps({"line": 2, "reason": reject}))
    else:
        pixels[1, 2, 2] = shade
        Image.fromarray(pixels).save(folder / "images" / "b.png")
        rows += [{"seed": 4, "file_name": "images/b.png", "prompt": "b", "steps": 3 + shade}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


RUN = Run(
    "a run", {}, (Row("previews", {"seed": FIRST_SEED}, False, 1), Row("a derived seed", {"prompt": "b"}, False, 0))
)


def found(before: Path, after: Path) -> list[str]:
    results = [results_of(out, RUN.rows) for out in (before, after)]
    return [difference.report() for difference in differences(RUN, *results)]


def test_the_same_pixels_are_no_difference_whatever_their_files_are_called(tmp_path: Path) -> None:
    before, after = made(tmp_path / "before"), made(tmp_path / "after")
    for folder in ("images", "steps"):
        (after / folder / "a.png").rename(after / folder / "other.png")
    manifest = after / "metadata.jsonl"
    manifest.write_text(manifest.read_text().replace("images/a.png", "images/other.png"))
    assert found(before, after) == []


def test_one_other_pixel_names_the_row_its_job_and_the_metadata_that_differ(tmp_path: Path) -> None:
    [report] = found(made(tmp_path / "before"), made(tmp_path / "after", shade=8))
    assert report.splitlines() == [
        "a run, line 2: a derived seed",
        "  image",
        '  job {"prompt": "b"}',
        "  steps: 10 before, 11 after",
    ]


def test_previews_that_are_other_or_missing_are_a_difference(tmp_path: Path) -> None:
    before, after = made(tmp_path / "before"), made(tmp_path / "after")
    (after / "steps" / "a.png").unlink()
    [report] = found(before, after)
    assert report.splitlines()[:2] == ["a run, line 1: previews", "  previews (.png)"]


def test_a_row_that_is_rejected_is_a_difference_even_where_both_reject_it(tmp_path: Path) -> None:
    rejected = made(tmp_path / "rejected", reject="no such sampler")
    [report] = found(rejected, rejected)
    assert "  rejected before: no such sampler\n  rejected after: no such sampler" in report
    results = [results_of(out, RUN.rows) for out in (rejected, made(tmp_path / "made"))]
    assert [difference.kind for difference in differences(RUN, *results)] == [NEW]
    assert [difference.kind for difference in differences(RUN, *results[::-1])] == [OTHER]
