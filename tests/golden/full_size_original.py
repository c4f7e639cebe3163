"""Records what the original repositories build from their configs, and what the toys' networks give.

    python -m tests.golden.full_size_original COMPVIS STABILITY OPEN_CLIP   (in the environment of `make parity`)

The three are folders: checkouts of github.com/CompVis/stable-diffusion and github.com/Stability-AI/stablediffusion, and
one that holds the package `open_clip`. None has to be installed: what they import and do not use here is stubbed. The
models are built on torch's meta device, so nothing of the full sizes is allocated.
"""

import contextlib
import copy
import gzip
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml

from tests.golden import checkpoints

# Of the repositories' imports, what has no say here.
_STUBS = (
    "omegaconf", "omegaconf.listconfig", "pytorch_lightning", "pytorch_lightning.utilities",
    "pytorch_lightning.utilities.distributed", "taming", "taming.modules", "taming.modules.vqvae",
    "taming.modules.vqvae.quantize", "torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.utils",
    "ldm.modules.encoders.modules", "ldm.modules.midas.api",
)  # fmt: skip
_FULL_CLIP = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
_TOY_CLIP = {
    **_FULL_CLIP,
    "hidden_size": checkpoints.TOY_TEXT_WIDTH,
    "intermediate_size": 4 * checkpoints.TOY_TEXT_WIDTH,
    "num_hidden_layers": checkpoints.TOY_TEXT_LAYERS,
    "num_attention_heads": 1,
}


class Stub(types.ModuleType):
    """A module in which every name is there, and means nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return types.new_class(name)


class FrozenCLIPEmbedder(torch.nn.Module):
    """As in the original `ldm.modules.encoders.modules`, with nothing downloaded."""

    def __init__(self, size: str) -> None:
        super().__init__()
        config = transformers.CLIPTextConfig(**(_FULL_CLIP if size == "full" else _TOY_CLIP))
        self.transformer = transformers.CLIPTextModel(config)


class FrozenOpenCLIPEmbedder(torch.nn.Module):
    """The same of Stability AI's: OpenCLIP's ViT-H/14 without its tower for images."""

    def __init__(self, size: str, folder: Path) -> None:
        super().__init__()
        from open_clip.model import CLIP

        if size == "full":
            config = json.loads((folder / "open_clip/model_configs/ViT-H-14.json").read_text())
        else:
            # One layer more than is used.
            text = {"context_length": 77, "vocab_size": 49408, "heads": 1, "width": checkpoints.TOY_TEXT_WIDTH}
            text["layers"] = checkpoints.TOY_TEXT_LAYERS + 1
            config = {"embed_dim": checkpoints.TOY_TEXT_WIDTH, "vision_cfg": {}, "text_cfg": text}
        config["vision_cfg"] = {"layers": 1, "width": 64, "head_width": 64, "image_size": 32, "patch_size": 16}
        self.model = CLIP(**config)
        del self.model.visual


@contextlib.contextmanager
def importable(repository: Path, open_clip: Path) -> Iterator[None]:
    """Lets `ldm` be imported from a checkout, and `open_clip.model` without the rest of its package."""
    before = dict(sys.modules)
    for name in _STUBS:
        sys.modules[name] = Stub(name)
        sys.modules[name].__path__ = []
    sys.modules["pytorch_lightning"].LightningModule = torch.nn.Module
    sys.modules["pytorch_lightning.utilities.distributed"].rank_zero_only = lambda function: function
    package = types.ModuleType("open_clip")
    package.__path__ = [str(open_clip / "open_clip")]
    sys.modules["open_clip"] = package
    sys.path.insert(0, str(repository))
    try:
        yield
    finally:
        sys.path.remove(str(repository))
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("ldm", "open_clip", *(stub.split(".")[0] for stub in _STUBS)):
                del sys.modules[name]


def read_config(repository: Path, variant: checkpoints.Variant, size: str) -> dict[str, Any]:
    """The variant's config as published, or with the sizes of the toy."""
    config = yaml.safe_load((repository / variant.config).read_text())
    params = config["model"]["params"]
    unet = params["unet_config"]["params"]
    if variant.in_channels is not None:
        unet["in_channels"] = variant.in_channels
    if size == "toy":
        unet.update(checkpoints.TOY_UNETS[variant.repository])
        params["first_stage_config"]["params"]["ddconfig"].update(checkpoints.TOY_VAE)
    return config


def build(config: dict[str, Any], size: str, open_clip: Path, device: str) -> torch.nn.Module:
    """The whole model of a config, with averages."""
    import ldm.models.diffusion.ddpm as ddpm

    params = copy.deepcopy(config["model"]["params"])
    kind = params.pop("cond_stage_config")["target"].split(".")[-1]
    # MiDaS is a checkpoint of its own.
    params.pop("depth_stage_config", None)
    params.pop("finetune_keys", None)
    instantiate = ddpm.instantiate_from_config

    def placed(asked: Any) -> torch.nn.Module:
        with torch.device(device):
            return instantiate(asked)

    class Whole(ddpm.LatentDiffusion):
        def instantiate_cond_stage(self, _: Any) -> None:
            with torch.device(device):
                clip = kind == "FrozenCLIPEmbedder"
                self.cond_stage_model = FrozenCLIPEmbedder(size) if clip else FrozenOpenCLIPEmbedder(size, open_clip)

    ddpm.instantiate_from_config = placed
    with contextlib.redirect_stdout(None):
        return Whole(**{**params, "cond_stage_config": None, "use_ema": True})


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's state. transformers 5 names CLIP's parameters without the `text_model.` that files have."""
    start = "cond_stage_model.transformer."
    return {
        name if not name.startswith(start) or "text_model." in name else f"{start}text_model.{name[len(start) :]}": v
        for name, v in model.state_dict().items()
    }


@torch.no_grad()
def outputs_of(model: torch.nn.Module, variant: str) -> dict[str, np.ndarray]:
    """What the networks of a toy give for `checkpoints.inputs`, channels last."""
    values = checkpoints.toy_weights(variant, ema=True)
    for name, tensor in state_of(model).items():
        if name in values:
            tensor.copy_(torch.from_numpy(values[name]))
    model.eval()
    unet, vae = model.model.diffusion_model, model.first_stage_model
    given = {name: torch.from_numpy(array) for name, array in checkpoints.inputs(unet.in_channels).items()}
    first = {name: array.permute(0, 3, 1, 2) for name, array in given.items() if array.ndim == 4}
    posterior = vae.encode(first["pixels"])
    found = {
        "prediction": unet(first["sample"], given["timesteps"], context=given["context"]),
        "mean": posterior.mean,
        "decoded": vae.decode(first["latents"]),
    }
    found = {name: tensor.permute(0, 2, 3, 1) for name, tensor in found.items()}
    encoder, ids = model.cond_stage_model, given["input_ids"].long()
    if hasattr(encoder, "transformer"):
        found["text"] = encoder.transformer(ids).last_hidden_state
    else:
        clip = encoder.model
        x = clip.token_embedding(ids) + clip.positional_embedding
        for block in clip.transformer.resblocks[:-1]:  # "penultimate"
            x = block(x, attn_mask=clip.attn_mask)
        found["text"] = clip.ln_final(x)
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in found.items()}


def main(compvis: Path, stability: Path, open_clip: Path) -> None:
    """Records everything."""
    repositories = {"compvis": compvis, "stability": stability}
    listed: dict[str, Any] = {"full": {}, "toy": {}}
    outputs: dict[str, np.ndarray] = {}
    for name, variant in checkpoints.VARIANTS.items():
        repository = repositories[variant.repository]
        with importable(repository, open_clip):
            for size in listed:
                config = read_config(repository, variant, size)
                state = state_of(build(config, size, open_clip, "meta"))
                # Only the part that is about the model; the rest is about its training.
                listed[size][name] = [{"model": config["model"]}, {key: list(v.shape) for key, v in state.items()}]
    checkpoints.RECORDED.write_bytes(gzip.compress(json.dumps(listed).encode(), mtime=0))
    for name, variant in checkpoints.VARIANTS.items():
        repository = repositories[variant.repository]
        with importable(repository, open_clip):
            model = build(read_config(repository, variant, "toy"), "toy", open_clip, "cpu")
            outputs |= {f"{name}/{output}": array for output, array in outputs_of(model, name).items()}
    np.savez_compressed(checkpoints.OUTPUTS, **outputs)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
