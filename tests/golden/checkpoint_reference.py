"""Original single files as diffusers reads them, and what it draws from them. Needs torch."""

import gzip
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import diffusers
import numpy as np
import torch

import sdjax
from tests.golden import checkpoints
from tests.golden.checkpoints import Drawing
from tests.golden.reference import Drawer


def pipeline(file: Path, model: sdjax.Model, folder: Path) -> diffusers.StableDiffusionPipeline:
    """diffusers' pipeline of a single file, and of the configs of `model`, which are written to `folder`.

    Its pipeline for text reads the networks of inpainting and depth models too.
    """
    index = checkpoints.write_configs_of(folder, model) / "model_index.json"
    listed = json.loads(index.read_text())
    listed.pop("depth_estimator", None)
    index.write_text(json.dumps({**listed, "_class_name": "StableDiffusionPipeline"}))
    return diffusers.StableDiffusionPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )


def checksums(read: diffusers.StableDiffusionPipeline) -> dict[str, dict[str, str]]:
    """Those of all parameters, by network and name."""
    return {
        part: {name: checkpoints.checksum(value.numpy()) for name, value in getattr(read, part).state_dict().items()}
        for part in ("text_encoder", "unet", "vae")
    }


def drawn(
    pipelines: Mapping[str, diffusers.StableDiffusionPipeline], drawings: Mapping[str, Drawing]
) -> dict[str, np.ndarray]:
    """What diffusers draws."""
    drawers = {variant: Drawer(read) for variant, read in pipelines.items()}
    return {name: drawers[drawing.variant].draw(checkpoints.as_image(drawing)) for name, drawing in drawings.items()}


def record() -> None:
    """Records checksums and images."""
    pipelines = {}
    with tempfile.TemporaryDirectory() as name:
        for variant in checkpoints.VARIANTS:
            file = checkpoints.write_toy(Path(name) / f"{variant}.safetensors", variant)
            model = checkpoints.load_toy(file, variant)
            pipelines[variant] = pipeline(file, model, Path(name) / variant)
    listed = json.dumps({variant: checksums(read) for variant, read in pipelines.items()})
    checkpoints.CHECKSUMS.write_bytes(gzip.compress(listed.encode(), mtime=0))
    np.savez_compressed(checkpoints.DRAWN, **drawn(pipelines, checkpoints.RECORDED_DRAWINGS))
