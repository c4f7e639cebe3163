"""The same by diffusers. Needs torch.

python -m tests.golden.sd_upscaler_reference      (records the references; in the environment of `make parity`)
"""

import dataclasses
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from sdjax.checkpoints import name_table
from sdjax.families.networks import UNET_2D_CONDITION_MODEL
from sdjax.models import UNetConfig
from sdjax.models.latent_upscaler import LatentUpscalerConfig
from tests.golden import sd_upscalers
from tests.golden.sd_upscalers import Case, Toy


def skeleton(config: UNetConfig | LatentUpscalerConfig) -> Any:
    """diffusers' UNet, before its weights."""
    switches = {} if isinstance(config, UNetConfig) else sd_upscalers.X2_SWITCHES
    return diffusers.UNet2DConditionModel.from_config({**dataclasses.asdict(config), **switches})


@torch.no_grad()
def prediction(name: str) -> np.ndarray:
    """What the UNet of a toy gives."""
    toy, asked = sd_upscalers.TOYS[name], sd_upscalers.ASKED[name]
    unet = skeleton(toy.unet).eval()
    state = {}
    for keys, leaf in jax.tree.leaves_with_path(toy.params()["unet"]):
        path = tuple(key.key for key in keys)
        state[name_table.file_names(path, UNET_2D_CONDITION_MODEL.table)[0]] = torch.tensor(
            name_table.to_file(path, leaf)
        )
    unet.load_state_dict(state, strict=True)
    sample, timesteps, context, told = map(torch.tensor, asked)
    given = {"class_labels": told} if toy is sd_upscalers.X4_TOY else {"timestep_cond": told}
    out = unet(sample.permute(0, 3, 1, 2), timesteps, encoder_hidden_states=context, **given).sample
    return np.ascontiguousarray(out.permute(0, 2, 3, 1).numpy())


def upscaled(folder: Path, toy: Toy, case: Case) -> np.ndarray:
    """What diffusers' pipeline makes of all three, with a generator for each: pixels by x4, latents by x2."""
    class_name = toy.family.folder.pipelines[0].name
    pipeline = getattr(diffusers, class_name).from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {
        "prompt": list(sd_upscalers.PROMPTS),
        "negative_prompt": list(sd_upscalers.NEGATIVES),
        "num_inference_steps": case.steps,
        "guidance_scale": case.guidance_scale,
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in sd_upscalers.SEEDS],
    }
    if toy is sd_upscalers.X4_TOY:
        pixels = sd_upscalers.PIXELS.astype(np.float32) / 255
        images = pipeline(image=pixels, noise_level=case.noise_level, output_type="pil", **options).images
        return np.stack([np.asarray(image) for image in images])
    latents = torch.tensor(sd_upscalers.LATENTS).permute(0, 3, 1, 2)
    made = pipeline(image=latents, output_type="latent", **options).images
    return np.ascontiguousarray(made.permute(0, 2, 3, 1).numpy())


def converted(state: dict[str, np.ndarray], config: UNetConfig) -> dict[str, np.ndarray]:
    """A UNet under original names as diffusers renames it."""
    tensors = {name: torch.tensor(array) for name, array in state.items()}
    renamed = convert_ldm_unet_checkpoint(tensors, {"num_class_embeds": None, **dataclasses.asdict(config)})
    return {name: tensor.numpy() for name, tensor in renamed.items()}


def record() -> None:
    """Stores everything."""
    arrays = {f"network/{name}": prediction(name) for name in sd_upscalers.TOYS}
    with tempfile.TemporaryDirectory() as root:
        for name, toy in sd_upscalers.TOYS.items():
            folder = sd_upscalers.write(Path(root) / name, toy)
            for title, case in sd_upscalers.CASES[name].items():
                arrays[f"{name}/{title}"] = upscaled(folder, toy, case)
    np.savez_compressed(sd_upscalers.RECORDED, **arrays)
    with torch.device("meta"):
        published = {
            name: {key: list(tensor.shape) for key, tensor in skeleton(config).named_parameters()}
            for name, config in (("x4", sd_upscalers.PUBLISHED_X4), ("x2", sd_upscalers.PUBLISHED_X2))
        }
    sd_upscalers.NAMES.write_bytes(gzip.compress(json.dumps(published).encode(), mtime=0))


if __name__ == "__main__":
    record()
