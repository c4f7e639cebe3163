"""Records the references of this folder with diffusers and transformers.

    python -m tests.golden.record      (in the environment of `make parity`; `make golden` does it)

Nothing here comes from sdjax but names, weights and inputs. The embedded model's references have to be recorded again
when it has been trained again.
"""

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

import sdjax
from sdjax.model import path_of
from tests import toys
from tests.golden import (
    acceleration_reference,
    adapter_reference,
    checkpoint_reference,
    conditioned_reference,
    depth_reference,
    full_size,
    hypernetwork_reference,
    images,
    networks,
    pickle_reference,
    reference,
    sampler_reference,
    sd_upscaler_reference,
    upscaler_reference,
    variant_reference,
    variants,
)


def record_networks(file: Path, cases: dict[str, networks.Network], more: dict[str, np.ndarray]) -> None:
    """Stores what each network gives, as "case/output"."""
    arrays = {
        f"{name}/{output}": array
        for name, network in cases.items()
        for output, array in reference.outputs(network).items()
    }
    np.savez_compressed(file, **arrays, **more)


def record_images(model: str, folder: Path, more: dict[str, np.ndarray]) -> None:
    """Stores the images of one model."""
    drawer = reference.Drawer(folder)
    drawn = {name: drawer.draw(image) for name, image in images.RECORDED[model].items()}
    np.savez_compressed(images.recorded_file(model), **drawn, **more)


def record_variants() -> None:
    """Stores the images of models whose UNet is told more."""
    images = {}
    with tempfile.TemporaryDirectory() as root:
        for name in variants.QUICK:
            toy, cases = variants.VARIANTS[name]
            folder = toys.write_toy(Path(root) / name, toy)
            images |= {f"{name}/{case}": variant_reference.draw(folder, image) for case, image in cases.items()}
    np.savez_compressed(variants.RECORDED, **images)


def shapes_of_full_size(name: str) -> dict[str, dict[str, list[int]]]:
    """The names and shapes of all parameters of one published checkpoint, by network, nothing allocated."""

    def config(part: str) -> dict[str, Any]:
        return json.loads((full_size.CONFIGS / name / part / "config.json").read_text())

    with torch.device("meta"):
        parts = {
            "unet": diffusers.UNet2DConditionModel.from_config(config("unet")),
            "vae": diffusers.AutoencoderKL.from_config(config("vae")),
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**config("text_encoder"))),
        }
    return {
        part: {key: list(tensor.shape) for key, tensor in model.named_parameters()} for part, model in parts.items()
    }


def main() -> None:
    """Records everything."""
    listed = json.dumps({name: shapes_of_full_size(name) for name in full_size.NAMES}).encode()
    full_size.RECORDED.write_bytes(gzip.compress(listed, mtime=0))
    blocks = {f"{name}/output": reference.block_output(block) for name, block in networks.BLOCKS.items()}
    record_networks(networks.RECORDED, networks.NETWORKS, blocks)
    with tempfile.TemporaryDirectory() as folder:
        for name, toy in (("sd1", toys.SD1), ("sd2", toys.SD2)):
            record_images(name, toys.write_toy(Path(folder) / name, toy), {})
    acceleration_reference.record()
    checkpoint_reference.record()
    adapter_reference.record()
    hypernetwork_reference.main()
    pickle_reference.record()
    record_variants()
    conditioned_reference.record()
    sampler_reference.record_strengths()
    depth_reference.record([])
    sd_upscaler_reference.record()
    upscaler_reference.record()
    digest = {"digest": np.array(sdjax.load("emoji").digest)}
    record_networks(networks.EMOJI_RECORDED, networks.emoji_networks(), digest)
    record_images("emoji", path_of("emoji"), digest)


if __name__ == "__main__":
    main()
