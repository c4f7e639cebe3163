"""What `sdjax convert` writes, opened by diffusers."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines.convert import CLIP
from sdjax.checkpoints.convert import file_to_folder, folder_to_file
from tests import toys
from tests.golden import checkpoints

pytestmark = pytest.mark.parity

reference = pytest.importorskip(
    "tests.golden.checkpoint_reference", reason="needs torch: make parity", exc_type=ImportError
)


@pytest.mark.parametrize(
    ("variant", "pipeline"),
    [
        ("sd1_inpaint", "StableDiffusionInpaintPipeline"),
        ("sd2_v", "StableDiffusionPipeline"),
        ("sd2_depth", "StableDiffusionDepth2ImgPipeline"),
    ],
)
def test_diffusers_opens_a_folder_made_of_a_single_file(variant: str, pipeline: str, tmp_path: Path) -> None:
    """With the parameters which it reads from that file itself."""
    import diffusers

    file = checkpoints.write_toy(tmp_path / "toy.safetensors", variant)
    file_to_folder(file, tmp_path / "folder", CLIP, prediction_type=checkpoints.PREDICTS.get(variant))
    parts = ("depth_estimator", "feature_extractor") if variant == "sd2_depth" else ()
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "folder", **dict.fromkeys(parts))
    assert type(opened).__name__ == pipeline
    given = {
        part: {name.removeprefix("text_model."): checksum for name, checksum in found.items()}
        for part, found in reference.checksums(opened).items()
    }
    assert given == checkpoints.recorded_checksums(variant)


@pytest.mark.parametrize("toy", [toys.SD1, toys.SD2], ids=["sd1", "sd2"])
def test_diffusers_opens_a_single_file_made_of_a_folder(toy: toys.Toy, tmp_path: Path) -> None:
    """With the parameters which it reads from that folder itself."""
    import diffusers

    folder, file = toys.write_toy(tmp_path / "folder", toy), tmp_path / "toy.safetensors"
    folder_to_file(folder, file, CLIP)
    if toy is toys.SD2:
        # It reads the width of OpenCLIP's tower off this one, or takes it to be 1024, as it is at full size.
        projection = {"cond_stage_model.model.text_projection": np.zeros((32, 32), np.float32)}
        save_file({**load_file(file), **projection}, file)
    opened = diffusers.StableDiffusionPipeline.from_single_file(str(file), config=str(folder), local_files_only=True)
    given, wanted = (
        reference.checksums(each) for each in (opened, diffusers.StableDiffusionPipeline.from_pretrained(folder))
    )
    assert given == wanted
