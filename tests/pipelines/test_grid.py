"""Comparison sheets of an output."""

import json

import numpy as np
import pytest
from PIL import Image

from pipelines import grid
from pipelines.grid import Axes, Axis, read_axis, read_where
from pipelines.sinks.manifest_rows import image_name
from sdjax.images.captions import LINE
from sdjax.storage import write_jsonl

SIZE = 96
NONE = Axes(None, None, None)


@pytest.fixture
def out(tmp_path):
    """Images whose colour is told by their steps (red) and their sampler (green)."""
    rows = []
    for number, (sampler, steps, seed) in enumerate(
        (sampler, steps, seed) for sampler in ("heun", "euler") for steps in (20, 5) for seed in (1, 2)
    ):
        if (sampler, steps, seed) == ("heun", 20, 2):
            continue
        name = f"{number:032x}"
        pixels = np.full((SIZE, SIZE, 3), (steps * 10, 200 if sampler == "heun" else 50, 100 + seed * 20), np.uint8)
        path = tmp_path / image_name(name, "png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        row = {"file_name": image_name(name, "png"), "id": name, "prompt": "a", "sampler": sampler, "steps": steps}
        row |= {"width": SIZE, "height": SIZE}
        rows.append({**row, "seed": str(seed) if number % 2 else seed})  # as it is written, and was in version 0.2
    write_jsonl(str(tmp_path / "metadata.jsonl"), rows)
    return tmp_path


def colours(path):
    """The colours of all images on a sheet, from left to right and from above."""
    pixels = np.asarray(Image.open(path)).astype(int)
    found = []
    height, width = pixels.shape[:2]
    for top in range(height - SIZE + 1):
        for left in range(width - SIZE + 1):
            block = pixels[top : top + SIZE : SIZE - 1, left : left + SIZE : SIZE - 1].reshape(-1, 3)
            if tuple(block[0]) not in ((255, 255, 255),) and (block == block[0]).all() and np.ptp(block[0]) > 60:
                whole = pixels[top : top + SIZE, left : left + SIZE].reshape(-1, 3)
                if (whole == whole[0]).all():
                    found.append(tuple(map(int, block[0])))
    return found


def test_images_are_where_their_values_say(out):
    target = str(out / "grid.png")
    axes = Axes(Axis("steps", None), Axis("sampler", None), None)
    assert grid.write(str(out), target, axes, {"seed": 1}) == (4, 0, "")
    assert colours(target) == [(50, 50, 120), (200, 50, 120), (50, 200, 120), (200, 200, 120)]


def test_values_can_be_chosen_and_put_in_order(out):
    target = str(out / "grid.png")
    axes = Axes(read_axis("steps=20,5"), read_axis("sampler_name=Heun,Euler"), None)
    assert grid.write(str(out), target, axes, read_where(["seed=1"])) == (4, 0, "")
    assert colours(target) == [(200, 200, 120), (50, 200, 120), (200, 50, 120), (50, 50, 120)]


def test_a_third_field_goes_from_block_to_block_and_a_gap_is_counted(out):
    target = str(out / "grid.png")
    axes = Axes(Axis("steps", None), Axis("sampler", None), Axis("seed", None))
    assert grid.write(str(out), target, axes, {}) == (7, 1, "")
    assert colours(target)[:5] == [(50, 50, 120), (200, 50, 120), (50, 200, 120), (200, 200, 120), (50, 50, 140)]
    assert Image.open(target).height > 4 * SIZE + 4 * LINE


@pytest.mark.parametrize(
    "axes, where, message",
    [
        (NONE, {}, "there are several images with no axes; they differ in steps, sampler, seed"),
        (Axes(Axis("steps", None), None, None), {"sampler": "euler"}, "they differ in seed"),
        (Axes(Axis("stepz", None), None, None), {}, "'stepz' is no field of these images; known: file_name"),
        (Axes(Axis("steps", None), Axis("steps", None), None), {}, "expected different fields"),
        (NONE, {"seed": 9}, "there are no images with these values"),
    ],
)
def test_what_can_not_be_drawn_is_told(out, axes, where, message):
    with pytest.raises(ValueError) as raised:
        grid.write(str(out), str(out / "grid.png"), axes, where)
    assert message.split(" differ in ")[0] in str(raised.value)
    assert all(name in str(raised.value) for name in message.split(" differ in ")[-1].split(", ")[:1])
    assert not (out / "grid.png").exists()


@pytest.mark.parametrize("text, message", [("seed", "expected KEY=VALUE"), ("steps=many", "steps = 'many'")])
def test_a_condition_that_can_not_be_read_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        read_where([text])


def test_names_of_samplers_in_other_tools_are_read_along_axes():
    assert read_axis("sampler=Euler a, DPM++ 2M") == Axis("sampler", ("euler_ancestral", "dpmpp_2m"))
    assert read_axis("seed=1..3") == Axis("seed", (1, 2, 3))
    assert read_axis("") is None
    with pytest.raises(ValueError, match="is no field of a job"):
        read_axis("model=a,b")


def test_conditions_know_the_names_of_other_tools_and_what_is_missing_comes_first():
    assert read_where(["sampler=DPM++ 2M", "clip_skip=1"]) == {"sampler": "dpmpp_2m", "clip_skip": 1}
    assert read_axis("classifier_scale=0,2") == Axis("classifier_scale", (0.0, 2.0))
    assert grid._sorted([None, 10, 2, None]) == [None, 2, 10]
    assert grid._sorted(["b", None, "a"]) == [None, "a", "b"]


def test_sheets_of_metadata_that_are_no_json_are_errors(out):
    (out / "metadata.jsonl").write_text(json.dumps({"steps": 1})[:-1])
    with pytest.raises((ValueError, OSError), match=r"metadata\.jsonl"):
        grid.write(str(out), str(out / "grid.png"), NONE, {})
