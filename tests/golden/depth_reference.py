"""Records what transformers and the original code give for the cases of `tests.golden.depth`.

    python -m tests.golden.depth_reference [STABILITY TIMM]     (in the environment of `make parity`)

The two are folders: a checkout of github.com/Stability-AI/stablediffusion, and one that holds the package `timm` 0.6.13
(neither has to be installed: what they import and do not use here is stubbed). Without them what was recorded of the
original code is kept.
"""

import dataclasses
import functools
import gzip
import json
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from sdjax.checkpoints.depth_file import DepthProcessor
from sdjax.models.depth import DepthConfig
from tests.golden import depth

Arrays = dict[str, np.ndarray]


def config_json(config: DepthConfig) -> dict[str, Any]:
    """A config as transformers takes it."""
    data = dataclasses.asdict(config)
    if config.backbone_config is None:
        return data
    data["backbone_featmap_shape"] = [1, config.backbone_config.hidden_sizes[-1], 4, 4]
    data["backbone_config"] |= {
        "model_type": "bit",
        "layer_type": "bottleneck",
        "global_padding": "same",
        "embedding_dynamic_padding": True,
        "out_features": ["stage1", "stage2", "stage3"],
    }
    return data


def network(case: depth.Case) -> torch.nn.Module:
    """transformers' network with the case's weights."""
    model = transformers.DPTForDepthEstimation(transformers.DPTConfig(**config_json(case.config))).eval()
    weights = {name: torch.from_numpy(array.copy()) for name, array in depth.state(depth.params_of(case)).items()}
    left = model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith(depth.NOT_COMPUTED) for name in left.missing_keys)
    return model


@torch.no_grad()
def predicted(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The depth of images of any size, from parts of the network itself where the whole takes squares alone."""
    config, (height, width) = model.config, pixels.shape[2:]
    own = (height, width) == (config.image_size,) * 2
    embeddings, neck = model.dpt.embeddings, model.neck
    if config.is_hybrid and not own:
        embeddings.forward = functools.partial(type(embeddings).forward, embeddings, interpolate_pos_encoding=True)
    if height != width:
        patches = (height // config.patch_size, width // config.patch_size)
        neck.forward = lambda states, *_: type(neck).forward(neck, states, *patches)
    try:
        return model(pixels).predicted_depth
    finally:
        embeddings.__dict__.pop("forward", None)
        neck.__dict__.pop("forward", None)


def outputs(name: str, sizes: Iterable[tuple[int, int]]) -> Arrays:
    """What transformers and diffusers' pipeline give for a case, as `depth.outputs`."""
    case = depth.CASES[name]
    model, found = network(case), {}
    processor = transformers.DPTImageProcessorPil(do_resize=False)
    for height, width in sizes:
        pixels = processor(depth.image(height, width), return_tensors="pt").pixel_values
        predicted_depth = predicted(model, pixels)
        found[f"{height}x{width}"] = predicted_depth[0].numpy()
        # The pipeline's own function, given a map: of its parts it asks for one number.
        pipeline = types.SimpleNamespace(vae_scale_factor=8)
        prepare = diffusers.StableDiffusionDepth2ImgPipeline.prepare_depth_map
        image = torch.zeros(1, 3, height, width)
        maps = prepare(pipeline, image, predicted_depth, 1, False, torch.float32, torch.device("cpu"))
        found[f"{height}x{width} normalised"] = maps.permute(0, 2, 3, 1).numpy()
    return found


def settings_json(settings: DepthProcessor) -> dict[str, Any]:
    """Settings as transformers takes them."""
    height, width = settings.size
    return dataclasses.asdict(settings) | {"size": {"height": height, "width": width}}


def seen(name: str) -> Arrays:
    """What transformers' processor makes of some images, as `depth.seen`."""
    processor = transformers.DPTImageProcessorPil(**settings_json(depth.PROCESSORS[name]))
    return {
        f"{height}x{width}": processor(depth.image(height, width), return_tensors="np")
        .pixel_values[0]
        .transpose(1, 2, 0)
        for height, width in depth.IMAGES
    }


def sized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Depth at another size, by transformers' processor."""
    asked = types.SimpleNamespace(predicted_depth=torch.from_numpy(values[None]))
    processor = transformers.DPTImageProcessorPil()
    return processor.post_process_depth_estimation(asked, [(height, width)])[0]["predicted_depth"].numpy()


def full_size(name: str) -> dict[str, list[int]]:
    """Names and shapes of a published network, nothing allocated."""
    with torch.device("meta"):
        model = transformers.DPTForDepthEstimation(transformers.DPTConfig(**depth.CONFIGS["5"][name]))
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


# --- The original code ---

_STUBS = (
    "torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.models",
    "torchvision.models.feature_extraction", "timm.data", "timm.data.transforms",
)  # fmt: skip


class _Stub(types.ModuleType):
    """A module in which every name is there, and means nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return types.new_class(name)


def import_original(stability: Path, timm: Path) -> None:
    """Lets `ldm.modules.midas` and `timm` be imported from folders."""
    for name in _STUBS:
        sys.modules[name] = _Stub(name)
        sys.modules[name].__path__ = []
    sys.path[:0] = [str(stability), str(timm)]


def original_full_size(backbone: str) -> dict[str, list[int]]:
    """Names and shapes of the original network of a backbone, nothing allocated."""
    from ldm.modules.midas.midas.dpt_depth import DPTDepthModel

    linspace = torch.linspace
    # Of which timm wants numbers.
    torch.linspace = lambda *given, **options: linspace(*given, **{**options, "device": "cpu"})
    try:
        with torch.device("meta"):
            model = DPTDepthModel(backbone=backbone)
    finally:
        torch.linspace = linspace
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


def original_toy(name: str) -> torch.nn.Module:
    """The original network of a small size, with weights by `depth.original_weights`."""
    from ldm.modules.midas.midas import blocks, dpt_depth, vit
    from timm.models.layers import StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import HybridEmbed

    sizes = {"img_size": 64, "embed_dim": 128, "depth": 4, "num_heads": 2, "mlp_ratio": 1.5, "num_classes": 5}
    shared = {"size": [64, 64], "hooks": [0, 1, 2, 3], "vit_features": 128, "use_readout": "project"}
    if name == "original_hybrid":
        convolution = functools.partial(StdConv2dSame, eps=1e-8)  # as timm's vit_base_r50_s16_384 has it
        resnet = ResNetV2(
            (1, 2, 1), (128, 256, 128), 0, global_pool="", preact=False, stem_type="same", conv_layer=convolution
        )
        model = VisionTransformer(patch_size=1, embed_layer=functools.partial(HybridEmbed, backbone=resnet), **sizes)
        features = [128, 256, 40, 48]
        pretrained = vit._make_vit_b_rn50_backbone(model, features, **shared)
    else:
        features = [24, 32, 40, 48]
        pretrained = vit._make_vit_b16_backbone(VisionTransformer(patch_size=16, **sizes), features, **shared)
    dpt_depth._make_encoder = lambda *_, **__: (pretrained, blocks._make_scratch(features, 48, groups=1, expand=False))
    made = dpt_depth.DPTDepthModel(features=48).eval()
    shapes = {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}
    made.load_state_dict({key: torch.from_numpy(each) for key, each in depth.original_weights(shapes).items()})
    return made


@torch.no_grad()
def original_output(model: torch.nn.Module, height: int, width: int) -> np.ndarray:
    """What the original network gives for an image."""
    pixels = transformers.DPTImageProcessorPil(do_resize=False)(depth.image(height, width), return_tensors="pt")
    return model(pixels.pixel_values)[0].numpy()


def record(folders: list[Path]) -> None:
    """Records everything."""
    arrays = {
        f"{name}/{key}": array for name, case in depth.CASES.items() for key, array in outputs(name, case.sizes).items()
    }
    arrays |= {f"seen/{name}/{key}": array for name in depth.PROCESSORS for key, array in seen(name).items()}
    arrays |= {"sized": sized(*depth.SIZED)}
    shapes: dict[str, Any] = {name: full_size(name) for name in depth.PUBLISHED}
    if folders:
        import_original(*folders)
        shapes |= {"original_large": original_full_size("vitl16_384")}
        shapes |= {"original_hybrid_midas": original_full_size("vitb_rn50_384")}
        for name, sizes in depth.ORIGINALS.items():
            toy = original_toy(name)
            shapes[name] = {key: list(tensor.shape) for key, tensor in toy.state_dict().items()}
            arrays |= {f"{name}/{h}x{w}": original_output(toy, h, w) for h, w in sizes}
    else:
        kept = json.loads(gzip.decompress(depth.SHAPES.read_bytes()))
        shapes = kept | shapes
        with np.load(depth.RECORDED) as stored:
            arrays |= {key: stored[key] for key in stored if key.startswith("original_")}
    depth.SHAPES.write_bytes(gzip.compress(json.dumps(shapes).encode(), mtime=0))
    np.savez_compressed(depth.RECORDED, **arrays)


if __name__ == "__main__":
    record([Path(argument) for argument in sys.argv[1:]])
