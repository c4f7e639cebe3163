"""A depth estimator: a folder that transformers writes, alone or in a diffusers folder, or MiDaS' original name_table.

The original names stand in MiDaS' own files, and after `depth_model.model.` in those of Stable Diffusion 2 depth.
"""

import dataclasses
import functools
import json
import math
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import DTypeLike

from sdjax.checkpoints import name_table
from sdjax.checkpoints.digests import digest_files, sha256_of
from sdjax.checkpoints.infer_config import Shapes, under
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.original_names import Source, choose, naming
from sdjax.checkpoints.tensors import (
    CheckpointError,
    Params,
    ParamTensor,
    Tensor,
    check_layers,
    check_tensors,
    list_file,
    list_tensors,
    weight_files,
    write_params,
)
from sdjax.families.network import floats, random_key
from sdjax.messages import quoted
from sdjax.models.bit import BitConfig
from sdjax.models.config import MOST_SIDE, ConfigError, read_config, require, require_positive
from sdjax.models.depth import MAPS, DepthConfig, DepthEstimator

# Where the parts lie in a diffusers folder, and what the files are called.
PARTS = _MODEL, _PROCESSOR = "depth_estimator", "feature_extractor"
_CONFIG, _SETTINGS, _STEM = "config.json", "preprocessor_config.json", "model"

DEPTH = name_table.NameTable(
    renamed=(
        ("dpt.embeddings.cls_token.weight", "dpt.embeddings.cls_token"),
        ("dpt.embeddings.position_embeddings.weight", "dpt.embeddings.position_embeddings"),
        ("dpt.embeddings.patch_projection.", "dpt.embeddings.patch_embeddings.projection."),
        ("dpt.embeddings.backbone.encoder.layers.", "dpt.embeddings.backbone.bit.encoder.stages."),
        ("dpt.embeddings.backbone.", "dpt.embeddings.backbone.bit."),
        ("dpt.encoder.layers.", "dpt.encoder.layer."),
        ("neck.layers.", "neck.convs."),
        *(
            (f"neck.reassemble_stage.readout_{index}.", f"neck.reassemble_stage.readout_projects.{index}.0.")
            for index in range(MAPS)
        ),
        ("head.conv1.", "head.head.0."),
        ("head.conv2.", "head.head.2."),
        ("head.conv3.", "head.head.4."),
    ),
    # Not older names, but what torch calls numbers that are no weights.
    aliases=((".running_mean.bias", ".running_mean"), (".running_var.weight", ".running_var")),
    ignored=(
        # The features are taken before the last norm.
        r"dpt\.layernorm\.(weight|bias)",
        r"dpt\.pooler\.dense\.(weight|bias)",
        # The coarsest map has none before it to which it would be added; published files leave these out.
        r"neck\.fusion_stage\.layers\.0\.residual_layer1\..*",
        r".*\.batch_norm[12]\.num_batches_tracked",
    ),
)

# What stands in all settings and is said by the class, or is for segmentation maps or for what is not asked for.
_INFORMATIVE = frozenset(
    {
        "_valid_processor_keys", "crop_size", "data_format", "default_to_square", "device", "disable_grouping",
        "do_convert_rgb", "do_reduce_labels", "feature_extractor_type", "image_processor_type", "input_data_format",
        "pad_size", "processor_class", "return_tensors", "size_divisor",
    }
)  # fmt: skip
_FIXED = {"do_center_crop": frozenset({None, False}), "do_pad": frozenset({None, False})}
# Pillow's filters, by number.
_FILTERS = range(6)


@dataclasses.dataclass(frozen=True)
class DepthProcessor:
    """`preprocessor_config.json`: how an image becomes what the network sees. `size` is height and width.

    The defaults are those of transformers' `DPTImageProcessor`, and of all published depth estimators.
    """

    do_resize: bool = True
    size: tuple[int, ...] = (384, 384)
    resample: int = 3
    keep_aspect_ratio: bool = False
    ensure_multiple_of: int = 1
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        require_positive(self, "size", "ensure_multiple_of", most=MOST_SIDE)
        require_positive(self, "rescale_factor", "image_std")
        require(len(self.size) == 2, f"size = {self.size} is not a height and a width")
        require(self.resample in _FILTERS, f"resample = {self.resample} is none of Pillow's filters, 0 to 5")
        for name in ("image_mean", "image_std"):
            require(len(getattr(self, name)) == 3, f"{name} = {getattr(self, name)} is not one number for each colour")

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = _SETTINGS) -> "DepthProcessor":
        """Reads transformers' settings; raises `ConfigError` for what is not implemented."""
        data = dict(data)
        size = data.get("size", (384, 384))
        if isinstance(size, Mapping):
            if size.keys() != {"height", "width"}:
                raise ConfigError(f"{where}: size = {quoted(dict(size))} is not supported; supported: height and width")
            data["size"] = (size["height"], size["width"])
        elif isinstance(size, int) and not isinstance(size, bool):
            data["size"] = (size, size)
        return read_config(cls, data, fixed=_FIXED, informative=_INFORMATIVE, where=where)


class DepthFile(NamedTuple):
    """A depth estimator of which nothing but names and shapes is read yet.

    where: the file or folder.
    chosen: the tensor of each parameter.
    decisive: the files that have a say in what it gives, from `root` on.
    """

    where: Path
    config: DepthConfig
    processor: DepthProcessor
    chosen: list[ParamTensor]
    root: Path
    decisive: tuple[Path, ...]

    def digest(self, hashed: Mapping[Path, str] = types.MappingProxyType({})) -> str:
        """sha256 of a single file, or over the files of a folder; `hashed` has those of files that have been read."""
        if self.decisive == (self.where,):
            return hashed.get(self.where) or sha256_of(self.where)
        return digest_files(self.root, self.decisive, hashed)


def depth_shapes(config: DepthConfig) -> Params:
    """The parameter tree as shapes, nothing allocated. It is shared: not to be changed."""
    return _depth_shapes(dataclasses.replace(config, layer_norm_eps=1.0))  # it shapes no parameter


@functools.lru_cache(maxsize=8)
def _depth_shapes(config: DepthConfig) -> Params:
    pixels = floats(1, config.patch_size, config.patch_size, 3)
    return jax.eval_shape(DepthEstimator(config).init, random_key(), pixels)["params"]


def find_depth(path: Path, pickled: bool = False) -> DepthFile:
    """Finds a depth estimator.

    Args:
      path: a folder with `config.json` and weights, as transformers writes it; a diffusers folder with
        `depth_estimator/`; or a single file under the original names, MiDaS' own or of Stable Diffusion 2 depth.
      pickled: whether a single file may be a pickled one, and a folder's weights where there are no others.

    Raises:
      CheckpointError: if there is none, or it is not whole.
      ConfigError: if its config or its settings ask for what is not implemented.
    """
    if path.is_dir():
        return _in_folder(path / _MODEL if (path / _MODEL).is_dir() else path, pickled)
    tensors = list_file(path, pickled).tensors
    start = next((name.removesuffix(_TOKEN) for name in tensors if name.endswith(_TOKEN)), None)
    if start is None:
        raise CheckpointError(
            f"{path} holds no depth estimator: no name ends with {_TOKEN}. Expected MiDaS' DPT-Hybrid or DPT-Large, or "
            "a single file of Stable Diffusion 2 depth; of another network give transformers' folder"
        )
    with naming(path):
        config = infer_depth(under(tensors, start))

    def is_known(name: str) -> bool:
        return not name.startswith(start) or bool(_UNUSED.fullmatch(name.removeprefix(start)))

    wanted = [source._replace(name=start + source.name) for source in depth_sources(config)]
    chosen = choose(str(path), tensors, {"depth": wanted}, is_known)["depth"]
    return DepthFile(path, config, DepthProcessor(), chosen, path.parent, (path,))


def write_depth(folder: Path, config: DepthConfig, processor: DepthProcessor, params: Params, dtype: DTypeLike) -> None:
    """Writes a depth estimator's folder as transformers does; weights of `dtype`. Not a hybrid's."""
    height, width = processor.size
    documents = {
        _CONFIG: {
            "architectures": ["DPTForDepthEstimation"],
            "model_type": "dpt",
            **{key: value for key, value in dataclasses.asdict(config).items() if key != "backbone_config"},
        },
        _SETTINGS: {
            "image_processor_type": "DPTImageProcessor",
            **dataclasses.asdict(processor),
            "size": {"height": height, "width": width},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", "utf-8")
    write_params(params, DEPTH, folder / f"{_STEM}.safetensors", dtype)


def _in_folder(folder: Path, pickled: bool) -> DepthFile:
    config = DepthConfig.from_json(read_json(folder / _CONFIG), str(folder / _CONFIG))
    root, settings = folder, folder / _SETTINGS
    if folder.name == _MODEL and not settings.is_file():
        root, settings = folder.parent, folder.parent / _PROCESSOR / _SETTINGS
    said = [settings] if settings.is_file() else []
    processor = DepthProcessor.from_json(read_json(settings), str(settings)) if said else DepthProcessor()
    files = weight_files(folder, _STEM, None, pickled)
    tensors: dict[str, Tensor] = list_tensors(files, pickled)
    check_layers(config.layers, tensors, str(folder))
    chosen = check_tensors(tensors, depth_shapes(config), DEPTH, str(folder))
    return DepthFile(folder, config, processor, chosen, root, (folder / _CONFIG, *said, *files))


# --- The original names ---

_TOKEN = "pretrained.model.cls_token"
# What the files have and nothing computes with: the classifier, the last norm, and the coarsest map's first block.
_UNUSED = re.compile(r"pretrained\.model\.(norm|head)\.(weight|bias)|scratch\.refinenet4\.resConfUnit1\..*")
_RESNET = "pretrained.model.patch_embed.backbone."
# Rows of one tensor, in this order.
_FUSED = ("query", "key", "value")
# Starts of transformers' names, as patterns -> the original ones; what follows is left as it is.
_STARTS = (
    (r"dpt\.embeddings\.cls_token", _TOKEN),
    (r"dpt\.embeddings\.position_embeddings", "pretrained.model.pos_embed"),
    (r"dpt\.embeddings\.(patch_embeddings\.)?projection\.", "pretrained.model.patch_embed.proj."),
    (r"dpt\.embeddings\.backbone\.bit\.embedder\.convolution\.", f"{_RESNET}stem.conv."),
    (r"dpt\.embeddings\.backbone\.bit\.embedder\.", f"{_RESNET}stem."),
    (r"dpt\.embeddings\.backbone\.bit\.encoder\.stages\.(\d+)\.layers\.", rf"{_RESNET}stages.\1.blocks."),
    (r"dpt\.encoder\.layer\.(\d+)\.attention\.attention\.\w+\.", r"pretrained.model.blocks.\1.attn.qkv."),
    (r"dpt\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"pretrained.model.blocks.\1.attn.proj."),
    (r"dpt\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"pretrained.model.blocks.\1.mlp.fc1."),
    (r"dpt\.encoder\.layer\.(\d+)\.output\.dense\.", r"pretrained.model.blocks.\1.mlp.fc2."),
    (r"dpt\.encoder\.layer\.(\d+)\.layernorm_before\.", r"pretrained.model.blocks.\1.norm1."),
    (r"dpt\.encoder\.layer\.(\d+)\.layernorm_after\.", r"pretrained.model.blocks.\1.norm2."),
    # Their lists begin at 1, and that of the fusion ends with the coarsest map.
    *(
        pair
        for i in range(MAPS)
        for pair in (
            (rf"neck\.reassemble_stage\.readout_projects\.{i}\.0\.", f"pretrained.act_postprocess{i + 1}.0.project.0."),
            (rf"neck\.reassemble_stage\.layers\.{i}\.projection\.", f"pretrained.act_postprocess{i + 1}.3."),
            (rf"neck\.reassemble_stage\.layers\.{i}\.resize\.", f"pretrained.act_postprocess{i + 1}.4."),
            (rf"neck\.convs\.{i}\.", f"scratch.layer{i + 1}_rn."),
            (rf"neck\.fusion_stage\.layers\.{i}\.projection\.", f"scratch.refinenet{MAPS - i}.out_conv."),
            (
                rf"neck\.fusion_stage\.layers\.{i}\.residual_layer(\d)\.convolution",
                rf"scratch.refinenet{MAPS - i}.resConfUnit\1.conv",
            ),
        )
    ),
    (r"head\.head\.", "scratch.output_conv."),
)


def original_name(name: str) -> str:
    """The original name of a tensor, by transformers'."""
    for ours, theirs in _STARTS:
        found, count = re.subn(f"^{ours}", theirs, name)
        if count:
            return found
    raise AssertionError(f"no original module holds {name}")


def depth_sources(config: DepthConfig) -> list[Source]:
    """Where the parameters lie in an original file, in the order of the tree."""
    found = []
    for keys, leaf in jax.tree.leaves_with_path(depth_shapes(config)):
        path = tuple(key.key for key in keys)
        shape, rows = name_table.shape_in_file(path, leaf.shape), None
        if path[-2] in _FUSED:
            first = _FUSED.index(path[-2]) * config.hidden_size
            rows, shape = (first, first + config.hidden_size), (3 * config.hidden_size, *shape[1:])
        found.append(Source(path, original_name(name_table.file_names(path, DEPTH)[0]), rows, shape))
    return found


# What the original code has and no file says: the width of a head, what the layer norms add to a variance (the configs
# of transformers say 1e-12), the groups of the ResNet's norms, and how many pixels one of its features stands for.
_HEAD_WIDTH, _LAYER_NORM_EPS, _GROUPS, _STRIDE = 64, 1e-6, 32, 16
_STAGES = 3


def infer_depth(stored: Shapes) -> DepthConfig:
    """The config of a network under the original names.

    Raises:
      CheckpointError: if names are missing.
      ConfigError: if there can be no such network.
    """
    hidden = stored.axis("pretrained.model.cls_token", 2)
    layers = stored.count("pretrained.model.blocks.{}.")
    require(layers > 0 and layers % MAPS == 0, f"pretrained.model.blocks are {layers}, not a multiple of {MAPS}")
    require(hidden % _HEAD_WIDTH == 0, f"pretrained.model has {hidden} channels, not a multiple of {_HEAD_WIDTH}")
    is_hybrid = stored.has("pretrained.model.patch_embed.backbone.")
    patch = _STRIDE if is_hybrid else stored.axis("pretrained.model.patch_embed.proj.weight", 2)
    return DepthConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // _HEAD_WIDTH,
        intermediate_size=stored.axis("pretrained.model.blocks.0.mlp.fc1.weight", 0),
        layer_norm_eps=_LAYER_NORM_EPS,
        image_size=patch * math.isqrt(stored.axis("pretrained.model.pos_embed", 1) - 1),
        patch_size=patch,
        is_hybrid=is_hybrid,
        backbone_out_indices=tuple(layers // MAPS * (index + 1) - 1 for index in range(MAPS)),
        reassemble_factors=(1, 1, 1, 0.5) if is_hybrid else (4, 2, 1, 0.5),
        neck_hidden_sizes=tuple(stored.axis(f"scratch.layer{index + 1}_rn.weight", 1) for index in range(MAPS)),
        fusion_hidden_size=stored.axis("scratch.layer1_rn.weight", 0),
        backbone_config=_infer_resnet(stored) if is_hybrid else None,
    )


def _infer_resnet(stored: Shapes) -> BitConfig:
    stages = [f"{_RESNET}stages.{index}.blocks." for index in range(_STAGES)]
    return BitConfig(
        embedding_size=stored.axis(f"{_RESNET}stem.conv.weight", 0),
        hidden_sizes=tuple(stored.axis(f"{stage}0.conv3.weight", 0) for stage in stages),
        depths=tuple(stored.count(f"{stage}{{}}.") for stage in stages),
        num_groups=_GROUPS,
    )
