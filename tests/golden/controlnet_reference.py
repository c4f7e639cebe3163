"""The same by diffusers; names, shapes and outputs by the original code. Needs torch.

    python -m tests.golden.controlnet_reference CLDM T2I   (in the environment of `make parity`)

The two are checkouts of github.com/lllyasviel/ControlNet and of the branch `SD` of github.com/TencentARC/T2I-Adapter.
"""

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import yaml
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from sdjax.checkpoints.controlnet_file import CONTROLNET
from sdjax.families.networks import UNET_2D_CONDITION_MODEL
from sdjax.models.t2i_adapter import T2IAdapterConfig
from tests.golden import checkpoints, controlnet, full_size
from tests.golden.controlnet import Case, Control
from tests.golden.full_size_original import Stub, importable
from tests.golden.networks import Arrays
from tests.golden.reference import _state, _to_numpy, _to_torch, skeleton


def network(control: Control) -> torch.nn.Module:
    """diffusers' network with the case's weights."""
    adapter = isinstance(control.config, T2IAdapterConfig)
    fields = {name: value for name, value in controlnet.json_of(control.config).items() if name != "_class_name"}
    fields = {name: list(value) if adapter and isinstance(value, tuple) else value for name, value in fields.items()}
    model = (diffusers.T2IAdapter if adapter else diffusers.ControlNetModel)(**fields).eval()
    state = _state(control.params(), CONTROLNET)
    model.load_state_dict({f"adapter.{name}" if adapter else name: each for name, each in state.items()}, strict=True)
    return model


@torch.no_grad()
def outputs(case: Case) -> Arrays:
    """What the reference gives: each image on its own, as pipelines have one weight for all."""
    unet = skeleton(case.unet).eval()
    unet.load_state_dict(_state(case.params(), UNET_2D_CONDITION_MODEL.table), strict=True)
    asked = {name: _to_torch(array) for name, array in controlnet.inputs(case).items()}
    models = [network(control) for control in case.controls]
    images = [_of_image(case, unet, models, asked, index) for index in range(controlnet.BATCH)]
    return {name: _to_numpy(torch.cat([image[name] for image in images])) for name in images[0]}


def _of_image(
    case: Case, unet: torch.nn.Module, models: list[torch.nn.Module], asked: dict[str, torch.Tensor], index: int
) -> dict[str, torch.Tensor]:
    own = {name: tensor[index : index + 1] for name, tensor in asked.items()}
    sample, timestep, context, labels = own["sample"], own["timesteps"], own["context"], own.get("class_labels")
    down: list[torch.Tensor] = []
    intrablock: list[torch.Tensor] = []
    mid = None
    for place, (control, model) in enumerate(zip(case.controls, models, strict=True)):
        weight, condition = control.weights[index], own[f"condition_{place}"]
        if isinstance(control.config, T2IAdapterConfig):
            features = [weight * each for each in model(condition)]
            intrablock = [a + b for a, b in zip(intrablock, features, strict=True)] if intrablock else features
            continue
        given = model(
            sample[:, :4], timestep, context, condition, weight, class_labels=labels, guess_mode=control.guess[index]
        )
        more = given.down_block_res_samples
        down = [a + b for a, b in zip(down, more, strict=True)] if down else list(more)
        mid = given.mid_block_res_sample if mid is None else mid + given.mid_block_res_sample
    told = {"down_block_additional_residuals": down or None, "mid_block_additional_residual": mid}
    if intrablock:
        told["down_intrablock_additional_residuals"] = [each.clone() for each in intrablock]
    found = {f"down_{place}": each for place, each in enumerate(down)} | ({} if mid is None else {"mid": mid})
    found |= {f"intrablock_{place}": each for place, each in enumerate(intrablock)}
    return found | {"prediction": unet(sample, timestep, context, class_labels=labels, **told).sample}


def read_by_diffusers(name: str, state: Arrays) -> dict[str, np.ndarray]:
    """An original ControlNet's state under diffusers' names, by its own conversion."""
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    layers = controlnet.TOY_CONTROLNETS[name]["num_res_blocks"]
    converted = convert_controlnet_checkpoint(tensors, {"layers_per_block": layers})
    return {key: value.numpy() for key, value in converted.items()}


# --- Recording ---


def of_full_size(name: str) -> dict[str, list[int]]:
    """The names and shapes of diffusers' ControlNet for a published UNet."""
    config = json.loads((full_size.CONFIGS / name / "unet" / "config.json").read_text())
    with torch.device("meta"):
        model = diffusers.ControlNetModel(**{key: config[key] for key in controlnet.OF_A_UNET if key in config})
    return {key: list(tensor.shape) for key, tensor in model.named_parameters()}


def original_controlnet(repository: Path, name: str, size: str, device: str) -> torch.nn.Module:
    """The original code's ControlNet; `importable` has to be in force."""
    import cldm.cldm as cldm

    config = yaml.safe_load((repository / controlnet.ORIGINAL_CONTROLNETS[name]).read_text())
    params = config["model"]["params"]["control_stage_config"]["params"]
    if size == "toy":
        params |= controlnet.TOY_CONTROLNETS[name] | {"context_dim": controlnet.TOY_TEXT_WIDTH}
    with torch.device(device):
        return cldm.ControlNet(**params | {"use_checkpoint": False}).eval()


def original_adapter(repository: Path, name: str, size: str, device: str) -> torch.nn.Module:
    """The original code's adapter, as its trained ones are."""
    sys.modules["ldm.modules.extra_condition.api"] = Stub("ldm.modules.extra_condition.api")
    file = repository / "ldm/modules/encoders/adapter.py"
    spec = importlib.util.spec_from_file_location("adapter", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    published = {"cin": 192, "nums_rb": 2, "ksize": 1, "sk": True, "use_conv": False}
    params = {"full": published, "light": {"cin": 192, "nums_rb": 4}}[name]
    params = controlnet.TOY_ADAPTERS[name] if size == "toy" else params
    with torch.device(device):
        return {"full": module.Adapter, "light": module.Adapter_light}[name](**params).eval()


def _shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def main(cldm: Path, t2i: Path) -> None:
    """Records everything."""
    listed: dict[str, Any] = {"original": {"full": {}, "toy": {}}, "read": {}}
    listed["diffusers"] = {name: of_full_size(name) for name in full_size.NAMES}
    arrays = {
        f"{name}/{output}": array for name, case in controlnet.CASES.items() for output, array in outputs(case).items()
    }
    asked = {name: _to_torch(array) for name, array in controlnet.original_inputs().items()}
    with importable(cldm, Path()), torch.no_grad():
        for size, found in listed["original"].items():
            found |= {
                name: _shapes(original_controlnet(cldm, name, size, "meta")) for name in controlnet.ORIGINAL_CONTROLNETS
            }
            found |= {name: _shapes(original_adapter(t2i, name, size, "meta")) for name in controlnet.ORIGINAL_ADAPTERS}
        controlnet.NAMES.write_bytes(gzip.compress(json.dumps(listed).encode(), mtime=0))
        for name in listed["original"]["toy"]:
            build, repository = (
                (original_adapter, t2i) if name in controlnet.ORIGINAL_ADAPTERS else (original_controlnet, cldm)
            )
            model = build(repository, name, "toy", "cpu")
            state = controlnet.original_toy(name)
            model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=True)
            if name in controlnet.ORIGINAL_CONTROLNETS:
                given = model(asked["sample"], asked["hint"], asked["timesteps"], asked["context"])
                read = read_by_diffusers(name, state)
                listed["read"][name] = {key: checkpoints.checksum(value) for key, value in read.items()}
            else:
                given = model(asked["hint"][:, : controlnet.TOY_ADAPTERS[name]["cin"] // 64])
            arrays |= {f"original_{name}/{index}": _to_numpy(each) for index, each in enumerate(given)}
    controlnet.NAMES.write_bytes(gzip.compress(json.dumps(listed).encode(), mtime=0))
    np.savez_compressed(controlnet.RECORDED, **controlnet.thinned(arrays))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
