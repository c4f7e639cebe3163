"""A run of many jobs of all kinds at once, on the embedded model with a channel of depth that says nothing."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

import sdjax
from pipelines import generate, worker
from pipelines.config import settings
from sdjax.models.t2i_adapter import T2IAdapterConfig
from sdjax.models.upscaler import CompactConfig
from sdjax.storage import read_jsonl
from sdjax.training import depth
from tests.golden import conditioned, controlnet, sd_upscalers, upscalers

SIZES = ((64, 64), (48, 64), (64, 48), (48, 48), (80, 64))
ROWS = 200


def rows() -> list[dict[str, object]]:
    chance = random.Random(7)
    modes = (
        {},
        {"image": "in/apple.png", "strength": 0.5},
        {"image": "in/apple.png", "strength": 0.9},
        {"image": "in/apple.png", "mask_image": "in/mask.png"},
        {"image": "in/apple.png", "mask_image": "in/mask.png", "only_masked": True, "inpaint_fill": "noise"},
        {"controlnets": "canny:0.7", "control_image": "in/apple.png", "control_preprocessor": "canny"},
        {"controlnets": "canny; canny:0.4", "image": "in/apple.png", "control_preprocessor": "canny; depth"},
        {"image": "in/apple.png", "depth_image": "in/mask.png"},
        {"hires_scale": 2.0, "hires_steps": 2},
        {"image": "in/apple.png", "strength": 0.4, "upscaler": "lanczos", "upscale_by": 2},
        {"upscaler": "x4", "upscaler_steps": 2},
        {"upscaler": "video"},
        {"image": "in/gone.png"},
        {
            "image": "in/apple.png",
            "mask_image": "in/mask.png",
            "keep_unmasked": True,
            "invert_mask": True,
            "mask_blur": 2.0,
            "inpaint_fill": "average",
        },
        {"hires_scale": 2.0, "hires_steps": 2, "hires_upscaler": "lanczos"},
        {"controlnets": "canny:0.7:0:0.5", "control_image": "in/apple.png", "guess_mode": True},
        {"controlnets": "adapter", "control_image": "in/apple.png", "control_preprocessor": "tile:2"},
        {"hires_scale": 2.0, "hires_steps": 2, "hires_upscaler": "video", "upscaler": "video", "upscale_by": 1.5},
    )
    found = []
    for number in range(ROWS):
        height, width = SIZES[chance.randrange(len(SIZES))]
        found.append(
            {"prompt": "a red apple", "seed": number, "steps": chance.choice((2, 3)), "height": height, "width": width,
             "sampler": chance.choice(("euler", "dpmpp_2m", "euler_ancestral")), **modes[number % len(modes)]}
        )  # fmt: skip
    return found


def buckets(asked: list[dict[str, object]]) -> set[tuple[object, ...]]:
    """What rows need programs for: sizes, masks and ControlNets, and the sizes of second passes; nothing else."""
    found: set[tuple[object, ...]] = set()
    for row in asked:
        if row.get("image") != "in/gone.png":
            size = int(str(row["height"])), int(str(row["width"]))
            nets = str(row.get("controlnets", ""))
            found.add((*size, "mask_image" in row, nets.count("canny"), "adapter" in nets))
            if "hires_scale" in row:
                found.add((2 * size[0], 2 * size[1], False, 0, False))
    return found


@pytest.mark.slow
def test_every_row_is_accounted_for_and_no_more_is_compiled_than_there_are_buckets(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    apple = PIL.Image.open(Path(conditioned.__file__).parent / "apple.png")
    apple.save(tmp_path / "in" / "apple.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[20:50, 10:40] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "in" / "mask.png")
    emoji = sdjax.load("emoji")
    depth.write_model(emoji, depth.beginning(emoji), tmp_path / "model")
    sd_upscalers.write(tmp_path / "upscalers" / "x4", sd_upscalers.X4_TOY)
    video = CompactConfig(convolutions=2, features=8, shuffle=2, scale=2)
    save_file(upscalers.state(video), tmp_path / "upscalers" / "video.safetensors")
    controls = Path(shutil.copytree(Path(sdjax.__file__).parent / "assets/emoji/controlnets", tmp_path / "controls"))
    (controls / "adapter").mkdir()
    adapter = T2IAdapterConfig(channels=emoji.unet.config.block_out_channels, downscale_factor=emoji.vae.config.factor)
    controlnet.write_folder(controls / "adapter", controlnet.Control(adapter, 21, ()))
    asked = rows()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    compiled: list[object] = []
    make_engine = worker.make_engine

    def counting(given, on_compile, **options):
        def both(bucket):
            compiled.append(bucket)
            on_compile(bucket)

        return make_engine(given, both, **options)

    monkeypatch.setattr(worker, "make_engine", counting)
    counts = generate.run_pipeline(
        [str(tmp_path / "rows.jsonl")],
        str(tmp_path / "out"),
        settings.make(
            {
                "model": str(tmp_path / "model"),
                "library.controlnets": str(controls),
                "library.depth_model": "emoji",
                "library.upscalers": str(tmp_path / "upscalers"),
                "engine.batch_size": 4,
            }
        ),
        [],
        str(tmp_path),
    )
    bad = sum(row.get("image") == "in/gone.png" for row in asked)
    assert (counts.rows, counts.rejected_rows, counts.made, counts.failed) == (ROWS, bad, ROWS - bad, 0)
    assert counts.problems() == []
    made = list(read_jsonl(str(tmp_path / "out" / "metadata.jsonl")))
    rejects = list(read_jsonl(str(tmp_path / "out" / "rejects.jsonl")))
    assert sorted(
        [int(row["seed"]) for row in made] + [asked[reject["line"] - 1]["seed"] for reject in rejects]
    ) == list(range(ROWS))
    assert len(compiled) <= len(buckets(asked))
    print(f"\n{len(made)} images, {len(rejects)} rejects, {len(compiled)} programs")
