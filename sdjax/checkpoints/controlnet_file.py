"""ControlNets and T2I adapters: diffusers' folders, and single files under its names or the original ones."""

import dataclasses
import functools
import itertools
import json
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import DTypeLike

from sdjax.checkpoints import infer_config, name_table, original_names
from sdjax.checkpoints.digests import digest_files, digest_with, sha256_of
from sdjax.checkpoints.identify import identify
from sdjax.checkpoints.infer_config import Shapes, under
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.original_names import Source, naming
from sdjax.checkpoints.tensors import (
    CheckpointError,
    MissingWeightsError,
    NetworkTensors,
    Params,
    ParamTensor,
    Tensor,
    check_layers,
    check_tensors,
    list_file,
    list_tensors,
    load_networks,
    weight_files,
    write_params,
)
from sdjax.families.known_models import by_context_width
from sdjax.families.network import floats, random_key
from sdjax.families.networks import UNET_2D_CONDITION_MODEL
from sdjax.models import UNetConfig
from sdjax.models.config import check_class
from sdjax.models.controlnet import ControlNet, ControlNetConfig
from sdjax.models.t2i_adapter import FULL, LIGHT, T2IAdapter, T2IAdapterConfig

# The names of their tensors.
CONTROLNET = name_table.NameTable()
T2I_ADAPTER = name_table.NameTable(prefix="adapter.", other_prefixes=("",))

ControlConfig = ControlNetConfig | T2IAdapterConfig
Tensors = Mapping[str, Tensor]

_STEM = "diffusion_pytorch_model"
# Within the folder of a whole pipeline.
_PARTS = ("controlnet", "adapter")
# What stands before an original ControlNet's names, where it was saved with the model that it was trained on.
_START = "control_model."
_MODEL = ("model.", "first_stage_model.", "cond_stage_model.", "model_ema.")
# Of an original ControlNet whose residuals are pooled, no file says so; ComfyUI too goes by its name.
_POOLED = "shuffle"
# What lies beside the shared half: the embedding of control images, under diffusers' name and the original one.
_EMBEDDING, _HINT = "controlnet_cond_embedding.", "input_hint_block."
# Of a UNet's modules, those that a ControlNet has not.
_WAY_UP = ("up_blocks_", "conv_norm_out", "conv_out")
# Pixels along a side that a T2I adapter takes for one: 8 for Stable Diffusion 1 and 2, 16 for XL.
_SQUARE, _XL_SQUARE = 8, 16
_IMAGE_CHANNELS = (1, 3)

# Networks that condition on images too, by a name in their files.
_OTHERS = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"lora_controlnet", "a Control-LoRA, which is of Stable Diffusion XL's weights"),
        (r"difference", "a difference to the weights of some checkpoint's UNet, which it does not name"),
        (r"(control_model\.)?label_emb\.0\..*|add_embedding\..*", "a ControlNet for Stable Diffusion XL"),
        (r"task_embedding|control_add_embedding\..*|control_type_proj.*", "a ControlNet Union, or a fuser of adapters"),
        (r"(controlnet_blocks|joint_blocks|double_blocks|transformer_blocks)\.\d+\..*", "for a diffusion transformer"),
        (r".*motion_modules\..*", "a SparseCtrl of AnimateDiff"),
        (r"lllite_.*", "a ControlNet-LLLite"),
        (r"(image_proj|ip_adapter)\..*", "an IP-Adapter"),
        (r"transformer_layes\..*", "a style adapter"),
    )
)


class ControlFile(NamedTuple):
    """A ControlNet or a T2I adapter of which nothing but names and shapes is read yet.

    where: the file or folder.
    chosen: the tensor of each parameter.
    root: the folder from which `decisive` are named.
    decisive: the files that have a say in its images.
    assumed: what no file says but decides too, and is not the ordinary.
    notes: what a user should know.
    """

    where: Path
    config: ControlConfig
    chosen: list[ParamTensor]
    root: Path
    decisive: tuple[Path, ...]
    assumed: Mapping[str, str] = types.MappingProxyType({})
    notes: tuple[str, ...] = ()

    def digest(self, hashed: Mapping[Path, str] = types.MappingProxyType({})) -> str:
        """sha256 of a single file, or over the files of a folder; `hashed` has those of files that have been read."""
        if self.decisive == (self.where,):
            return digest_with(hashed.get(self.where) or sha256_of(self.where), self.assumed)
        return digest_with(digest_files(self.root, self.decisive, hashed), self.assumed)


def find_controlnet(path: Path, variant: str | None = None, pickled: bool = False) -> ControlFile:
    """Finds a ControlNet or a T2I adapter.

    Args:
      path: a folder with `config.json`, or of a pipeline that has one in `controlnet/` or `adapter/`; or a single file,
        which may hold the model beside the ControlNet.
      variant: which files of a folder to take where it has them, for example "fp16".
      pickled: whether a single file may be a pickled one, and a folder's weights where there are no others.

    Raises:
      CheckpointError: if there is none, it is not whole, or of a kind that is not supported.
      ConfigError: if its config asks for what is not implemented.
    """
    if path.is_dir():
        inside = [path / part for part in _PARTS if (path / part / "config.json").is_file()]
        return _in_folder(path if (path / "config.json").is_file() or not inside else inside[0], variant, pickled)
    tensors = list_file(path, pickled).tensors
    for pattern, reason in _OTHERS:
        if any(map(pattern.fullmatch, tensors)):
            raise CheckpointError(f"{path} is {reason}: not supported")
    with naming(path):
        if any(name.startswith(_EMBEDDING) for name in tensors):
            return _under_diffusers_names(path, tensors)
        start = next((start for start in (_START, "") if f"{start}{_HINT}0.weight" in tensors), None)
        if start is not None:
            return _under_original_names(path, tensors, start)
        if any(map(_ADAPTER_LAYER.fullmatch, tensors)):
            return _under_diffusers_names(path, _renamed_adapter(tensors))
    raise CheckpointError(f"{path} holds no ControlNet and no T2I adapter: it is a {identify(tensors).kind}")


def is_controlnet_folder(folder: Path) -> bool:
    """Whether a folder is a ControlNet's or a T2I adapter's, as diffusers writes it, or a pipeline's with one in it."""
    if any((folder / part / "config.json").is_file() for part in _PARTS):
        return True
    is_other_part = folder.name not in _PARTS and (folder.parent / "model_index.json").is_file()
    return not is_other_part and (folder / "config.json").is_file() and any(folder.glob(f"{_STEM}*"))


def load_control(found: ControlFile, dtype: DTypeLike) -> tuple[Params, str]:
    """The parameters of what was found, arrays of numpy of `dtype`; and its digest.

    Raises:
      CheckpointError: if a file is gone or ends early.
    """
    params, hashed = load_networks({"control": NetworkTensors(found.chosen, control_shapes(found.config), dtype)})
    return params["control"], found.digest(hashed)


def write_controlnet(folder: Path, config: ControlNetConfig, params: Params, dtype: DTypeLike) -> None:
    """Writes a ControlNet's folder as diffusers does; weights of `dtype`."""
    unet = dataclasses.asdict(config.unet)
    own = {key: value for key, value in dataclasses.asdict(config).items() if key != "unet"}
    said = {key: value for key, value in {**unet, **own}.items() if key not in ("out_channels", "up_block_types")}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"_class_name": "ControlNetModel", **said}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", "utf-8")
    write_params(params, CONTROLNET, folder / f"{_STEM}.safetensors", dtype)


@functools.lru_cache(maxsize=32)
def control_shapes(config: ControlConfig) -> Params:
    """The parameter tree as shapes, nothing allocated. It is shared: not to be changed."""
    key = random_key()
    if isinstance(config, T2IAdapterConfig):
        image = floats(1, config.downscale_factor, config.downscale_factor, config.in_channels)
        return jax.eval_shape(T2IAdapter(config).init, key, image)["params"]
    network = ControlNet(config)
    condition = floats(1, config.factor, config.factor, config.conditioning_channels)
    embedding = jax.eval_shape(functools.partial(network.init, method="embed"), key, condition)["params"]
    shared = {
        name: tree
        for name, tree in UNET_2D_CONDITION_MODEL.param_shapes(config.unet).items()
        if not name.startswith(_WAY_UP)
    }
    *down, mid = ({"kernel": floats(1, 1, width, width), "bias": floats(width)} for width in config.residual_channels)
    zeros = {f"controlnet_down_blocks_{index}": tree for index, tree in enumerate(down)}
    return shared | embedding | zeros | {"controlnet_mid_block": mid}


# --- Folders, and files under diffusers' names ---

_READERS: Mapping[str, Callable[[Mapping[str, Any], str], ControlConfig]] = {
    "ControlNetModel": ControlNetConfig.from_json,
    "T2IAdapter": T2IAdapterConfig.from_json,
}


def _read_config(file: Path) -> ControlConfig:
    data = read_json(file)
    kind = str(data.get("_class_name")).removeprefix("Flax")
    check_class(data.get("_class_name") or "", tuple(_READERS), str(file))
    if data.get("addition_embed_type") is not None:
        raise CheckpointError(f"{file}: a ControlNet for Stable Diffusion XL: not supported")
    return _READERS[kind](data, str(file))


def _table(config: ControlConfig) -> name_table.NameTable:
    return CONTROLNET if isinstance(config, ControlNetConfig) else T2I_ADAPTER


def _in_folder(folder: Path, variant: str | None, pickled: bool) -> ControlFile:
    file = folder / "config.json"
    config = _read_config(file)
    try:
        files = weight_files(folder, _STEM, variant, pickled)
    except MissingWeightsError:
        files = weight_files(folder, _STEM, None, pickled)
    tensors = list_tensors(files, pickled)
    check_layers(config.layers, tensors, str(folder))
    chosen = check_tensors(tensors, control_shapes(config), _table(config), str(folder))
    return ControlFile(folder, config, chosen, folder, (file, *files))


def _under_diffusers_names(path: Path, tensors: Tensors) -> ControlFile:
    """With the config that lies beside the file, as in diffusers' folders, or else with what its tensors say."""
    beside = path.parent / "config.json"
    is_controlnet = any(name.startswith(_EMBEDDING) for name in tensors)
    expected = "ControlNetModel" if is_controlnet else "T2IAdapter"
    if beside.is_file() and read_json(beside).get("_class_name") == expected:
        config = _read_config(beside)
        check_layers(config.layers, tensors, str(beside))
        chosen = check_tensors(tensors, control_shapes(config), _table(config), str(path))
        return ControlFile(path, config, chosen, path.parent, (path, beside))
    shapes = under(tensors, "")
    config = infer_controlnet(as_original(shapes)) if is_controlnet else infer_adapter(shapes)
    chosen = check_tensors(tensors, control_shapes(config), _table(config), str(path))
    return _pooled_by_name(ControlFile(path, config, chosen, path.parent, (path,)))


def _pooled_by_name(found: ControlFile) -> ControlFile:
    """The same, but that its residuals are pooled if its name says so and no config does."""
    if not isinstance(found.config, ControlNetConfig) or _POOLED not in found.where.stem.lower():
        return found
    return found._replace(
        config=dataclasses.replace(found.config, global_pool_conditions=True),
        assumed={"global_pool_conditions": "true"},
        notes=(*found.notes, f"{found.where.name}: its residuals are pooled, as those of nets called {_POOLED!r} are"),
    )


# --- Original ControlNets ---


def _under_original_names(path: Path, tensors: Tensors, start: str) -> ControlFile:
    config = infer_controlnet(under(tensors, start))
    beside = bool(start) and any(name.startswith(_MODEL) for name in tensors)

    def is_known(name: str) -> bool:
        return original_names.is_extra(name) or (beside and name.startswith(_MODEL))

    chosen = original_names.choose(str(path), tensors, {"control": controlnet_sources(config, start)}, is_known)[
        "control"
    ]
    notes = (f"{path.name} holds a whole model: only its ControlNet is taken",) if beside else ()
    return _pooled_by_name(ControlFile(path, config, chosen, path.parent, (path,), notes=notes))


def controlnet_sources(config: ControlNetConfig, start: str = _START) -> list[Source]:
    """Where the parameters lie in an original file, in the order of the tree."""
    shared = {
        source.path: source.name.removeprefix(original_names.UNET)
        for source in original_names.unet_sources(config.unet)
    }
    blocks = 2 * (len(config.conditioning_embedding_out_channels) - 1)
    # An activation stands between any two of them.
    hints = {"conv_in": 0, "conv_out": 2 * (blocks + 1)} | {f"blocks_{i}": 2 * (i + 1) for i in range(blocks)}
    found = []
    for keys, shape in jax.tree.leaves_with_path(control_shapes(config)):
        path = tuple(key.key for key in keys)
        if path in shared:
            name = shared[path]
        elif path[0] == "controlnet_cond_embedding":
            name = f"{_HINT}{hints[path[1]]}.{name_table.LEAVES[path[2]]}"
        elif path[0] == "controlnet_mid_block":
            name = f"middle_block_out.0.{name_table.LEAVES[path[1]]}"
        else:
            name = f"zero_convs.{path[0].rpartition('_')[2]}.0.{name_table.LEAVES[path[1]]}"
        found.append(Source(path, start + name, None, name_table.shape_in_file(path, shape.shape)))
    return found


def infer_controlnet(stored: Shapes) -> ControlNetConfig:
    """The config of a ControlNet, with the heads that Stable Diffusion 1 or 2 has, and its residuals not pooled.

    Args:
      stored: what lies under `control_model.`.

    Raises:
      CheckpointError: if names are missing, or it is for Stable Diffusion XL.
      ConfigError: if there can be no such network.
    """
    # There is no way up to tell of.
    unet = infer_config.infer_unet(Shapes(stored.where, {**stored.shapes, "out.2.weight": (UNetConfig.out_channels,)}))
    model = by_context_width(unet.per_level("cross_attention_dim")[0])
    if model and not model.supported:
        raise CheckpointError(f"a ControlNet for {model.name}: not supported")
    last = next(index for index in itertools.count(0, 2) if f"{_HINT}{index + 2}.weight" not in stored)
    return ControlNetConfig(
        unet=unet,
        conditioning_channels=stored.axis(f"{_HINT}0.weight", 1),
        # The first, and then every second, which halves.
        conditioning_embedding_out_channels=tuple(
            stored.axis(f"{_HINT}{index}.weight", 0) for index in range(0, last, 4)
        ),
    )


def as_original(stored: Shapes) -> Shapes:
    """What is stored under diffusers' names, under the original ones as far as they tell of the config."""
    renamed = {"conv_in.": "input_blocks.0.0.", "mid_block.attentions.0.": "middle_block.1."}
    renamed |= {"class_embedding.": "label_emb.", f"{_EMBEDDING}conv_in.": f"{_HINT}0."}
    block = 1
    for level in range(stored.count("down_blocks.{}.")):
        start = f"down_blocks.{level}."
        for layer in range(stored.count(f"{start}resnets.{{}}.")):
            renamed[f"{start}resnets.{layer}.conv2."] = f"input_blocks.{block}.0.out_layers.3."
            renamed[f"{start}attentions.{layer}."] = f"input_blocks.{block}.1."
            block += 1
        if stored.has(f"{start}downsamplers.0."):
            renamed[f"{start}downsamplers.0.conv."] = f"input_blocks.{block}.0.op."
            block += 1
    blocks = stored.count(f"{_EMBEDDING}blocks.{{}}.")
    renamed |= {f"{_EMBEDDING}blocks.{index}.": f"{_HINT}{2 * (index + 1)}." for index in range(blocks)}
    renamed[f"{_EMBEDDING}conv_out."] = f"{_HINT}{2 * (blocks + 1)}."
    found = {}
    for name, shape in stored.shapes.items():
        for start, theirs in renamed.items():
            if name.startswith(start):
                found[theirs + name.removeprefix(start)] = shape
    return Shapes(stored.where, found)


# --- T2I adapters ---

# A residual block's first convolution, of a light adapter in the original code, of a full one there, of diffusers.
_ADAPTER_LAYER = re.compile(r"(adapter\.)?body\.(\d+)\.(body\.\d+\.|resnets\.\d+\.)?block1\.weight")


def _renamed_adapter(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors under diffusers' names without `adapter.`, from whatever names they have.

    In the original code, the residual blocks of a full adapter are numbered through all levels, of which the second is
    the first that has other channels than the one before it.
    """
    bare = [name.removeprefix(T2I_ADAPTER.prefix) for name in tensors]
    changes = [int(match[1]) for name in bare if (match := re.fullmatch(r"body\.(\d+)\.in_conv\.weight", name))]
    layers = max(1, min(changes, default=1))

    def numbered(match: re.Match[str]) -> str:
        level, layer = divmod(int(match[1]), layers)
        return f"body.{level}." if match[2] else f"body.{level}.resnets.{layer}."

    if any(name.startswith("body.0.body.") for name in bare):
        bare = [re.sub(r"^(body\.\d+)\.body\.", r"\1.resnets.", name) for name in bare]
    elif not any(name.startswith("body.0.resnets.") for name in bare):
        bare = [re.sub(r"^body\.(\d+)\.(?=(in_conv\.)?)", numbered, name) for name in bare]
    if len(set(bare)) < len(bare):
        raise CheckpointError("two names mean the same parameter of the adapter")
    return {name: tensor._replace(name=name) for name, tensor in zip(bare, tensors.values(), strict=True)}


def infer_adapter(stored: Shapes) -> T2IAdapterConfig:
    """The config of a T2I adapter, by diffusers' names without `adapter.`.

    Raises:
      CheckpointError: if names are missing, or it is for Stable Diffusion XL.
      ConfigError: if there can be no such network.
    """
    light = "conv_in.weight" not in stored
    levels = range(stored.count("body.{}."))
    last = "out_conv.weight" if light else "resnets.0.block1.weight"
    channels = tuple(stored.axis(f"body.{level}.{last}", 0) for level in levels)
    pixels = stored.axis("body.0.in_conv.weight" if light else "conv_in.weight", 1)
    of_xl = [count * _XL_SQUARE**2 for count in _IMAGE_CHANNELS]
    if pixels in of_xl:
        raise CheckpointError("a T2I adapter for Stable Diffusion XL: not supported")
    if pixels not in [count * _SQUARE**2 for count in _IMAGE_CHANNELS]:
        raise CheckpointError(
            f"its first convolution has {pixels} channels, not those of {_SQUARE} x {_SQUARE} pixels: put its "
            "config.json beside it"
        )
    return T2IAdapterConfig(
        in_channels=pixels // _SQUARE**2,
        channels=channels[:-1] if light else channels,
        num_res_blocks=stored.count("body.0.resnets.{}."),
        downscale_factor=_SQUARE,
        adapter_type=LIGHT if light else FULL,
    )
