"""LoRA and its family: files to changes of parameters, and parameters changed by them.

Read are files of kohya's scripts and of lycoris, of diffusers and of peft. A weight multiplies the whole change, as in
A1111: also in DoRA, where the change is all that lies between the merged weight and the former one (peft scales only
the low-rank part then; both are the same at weight 1).
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path as File
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.adapters import lora_kinds, lora_names
from sdjax.adapters.files import AdapterError, AdapterFile, open_adapter
from sdjax.adapters.lora_changes import Change, Difference, addition
from sdjax.adapters.peft_config import read_scales
from sdjax.checkpoints.name_table import Path
from sdjax.checkpoints.tensors import CheckpointError, Params, Tensor, list_file, read_tensor
from sdjax.families.family import UNET
from sdjax.families.known_models import by_context_width
from sdjax.families.network import NetworkConfig
from sdjax.models import TextEncoderConfig, UNetConfig

# How many names an error lists.
_LISTED = 6
# Of folders that peft and diffusers write; the first that is there is read.
FILES_IN_FOLDERS = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
# Width of the text, and the models that have it.

# What follows an embedding's name in A1111's bundles: the vectors of its only encoder.
_EMBEDDING_FORMS = re.compile(r"emb_params|string_to_param\..+|clip_l")

Changes = Mapping[Path, Change]
Weights = Mapping[str, Float[Array, ""] | float]


class Lora(NamedTuple):
    """An adapter, bound to a model's parameters.

    name: the file's or the folder's, by which prompts call it; alias: the name that its trainer wrote into it, or None.
    digest: sha256 of the file (and of peft's config beside it, where there is one).
    short_hash: A1111's, see `AdapterFile`.
    changes: by path of the parameter, the name of the network first.
    embeddings: that came with it: (vectors, width), by name.
    """

    name: str
    alias: str | None
    digest: str
    short_hash: str
    changes: dict[Path, Change]
    embeddings: dict[str, Float[np.ndarray, "n width"]]


# --- Files ---


def read_lora(file: File, networks: Mapping[str, NetworkConfig], pickled: bool = False) -> Lora:
    """Reads an adapter for a model.

    Args:
      file: or a folder in which peft or diffusers wrote one.
      networks: those of the model that are to be changed, by name: "unet", and those that read text.
      pickled: whether .pt and .bin files are read, by an unpickler that runs no code.

    Raises:
      AdapterError: if the file is damaged, holds something else, or is for another model.
    """
    name = file.name if file.is_dir() else file.stem
    if file.is_dir():
        file = _file_in(file)
    opened = open_adapter(file, pickled)
    unet, texts = networks[UNET], [config for config in networks.values() if isinstance(config, TextEncoderConfig)]
    assert isinstance(unet, UNetConfig), "it is the UNet's config"
    modules = lora_names.modules_of(tuple(networks.items()))
    stored, embeddings = _sorted(opened, modules, unet)
    scales = read_scales(opened)
    changes: dict[Path, Change] = {}
    problems: list[str] = []
    for path, (module, tensors) in stored.items():
        try:
            scale = scales.of(path[0], lora_names.without_prefix(module)[1]) if scales else None
            changes |= lora_kinds.changes(lora_kinds.ModuleTensors(module, path, modules.shapes[path], tensors, scale))
        except (AdapterError, CheckpointError) as error:
            problems.append(str(error))
    if problems:
        raise AdapterError(f"{file} can't be applied to this model{_made_for(stored, unet)}: {_listed(problems, '; ')}")
    vectors = {each: _vectors(tensor, texts[0]) for each, tensor in embeddings.items()}
    digest = opened.digest
    if scales and scales.text:
        digest = hashlib.sha256(digest.encode() + scales.text).hexdigest()
    return Lora(name, opened.metadata.get("ss_output_name"), digest, opened.short_hash, changes, vectors)


def trainers_name(place: File, pickled: bool = False) -> str | None:
    """The name that an adapter's trainer wrote into its file; None if there is none, or it can't be read."""
    try:
        return list_file(_file_in(place) if place.is_dir() else place, pickled).metadata.get("ss_output_name")
    except CheckpointError:  # an error once the file itself is asked for
        return None


def _file_in(folder: File) -> File:
    """The file of a folder that peft or diffusers wrote."""
    there = {each.name.lower(): each for each in sorted(folder.iterdir())}
    return next((there[name] for name in FILES_IN_FOLDERS if name in there), folder / FILES_IN_FOLDERS[0])


Stored = dict[Path, tuple[str, dict[str, Tensor]]]


def _sorted(opened: AdapterFile, modules: lora_names.Modules, unet: UNetConfig) -> tuple[Stored, dict[str, Tensor]]:
    """The tensors of each module by their role, with the module's name in the file; and the embeddings beside them."""
    stored: Stored = {}
    embeddings: dict[str, Tensor] = {}
    unknown, lost = [], []
    for name, tensor in opened.tensors.items():
        if bundled := lora_names.bundled_embedding(name):
            if not _EMBEDDING_FORMS.fullmatch(bundled.form) or bundled.name in embeddings:
                raise AdapterError(f"{opened.file}: {name} is no embedding for Stable Diffusion 1 or 2")
            embeddings[bundled.name] = tensor
            continue
        key = lora_names.parsed(name)
        if key is None:
            unknown.append(name)
            continue
        if lora_names.is_unused(key.module):
            continue
        path = modules.find(key.module)
        if path is None:
            lost.append(name)
            continue
        tensors = stored.setdefault(path, (key.module, {}))[1]
        if key.role in tensors:
            raise AdapterError(f"{opened.file}: {name} and {tensors[key.role].name} are the same, twice")
        tensors[key.role] = tensor
    for name in (*unknown, *lost):
        if kind := lora_names.refused_kind(name):
            raise AdapterError(f"{opened.file} holds {kind} ({name}), which is not supported")
        if model := lora_names.other_model(name):
            raise AdapterError(f"{opened.file} is for {model}: {name}")
    if unknown:
        raise AdapterError(f"{opened.file}: {_listed(unknown)} is nothing that files of LoRA have")
    if lost:
        raise AdapterError(
            f"{opened.file} is for modules which this model doesn't have{_made_for(stored, unet)}: {_listed(lost)}"
        )
    if not stored:
        raise AdapterError(f"{opened.file} holds no LoRA")
    return stored, embeddings


def _made_for(stored: Stored, unet: UNetConfig) -> str:
    """Which model a file is for, if its cross-attention takes text of another width."""
    width = unet.per_level("cross_attention_dim")[0]
    for path, (_, tensors) in stored.items():
        if path[-2:] == ("attn2", "to_k") and "down" in tensors and 0 not in tensors["down"].shape:
            shape = tensors["down"].shape
            found = math.prod(shape[1:])
            if found != width:
                known = by_context_width(found)
                model = f" as in {known.name}" if known else ""
                return f", whose text is {width} wide (the file's {found}{model})"
    return ""


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return separator.join(items[:_LISTED]) + more


def _vectors(tensor: Tensor, text: TextEncoderConfig) -> Float[np.ndarray, "n width"]:
    width = text.hidden_size
    if (
        len(tensor.shape) not in (1, 2)
        or 0 in tensor.shape
        or tensor.shape[-1] != width
        or tensor.dtype not in lora_kinds.FLOATS
    ):
        raise AdapterError(
            f"{tensor.file}: {tensor.name} is {tensor.dtype} {tensor.shape}, not vectors of the model's width, {width}"
        )
    try:
        return read_tensor(tensor).astype(np.float32).reshape(-1, width)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error


# --- Parameters ---


def changed(params: Params, adapters: Sequence[Changes], weights: Sequence[Weights]) -> dict[Path, Array]:
    """The parameters that adapters change, each as it is after all of them, one after the other as listed.

    Among them are biases of layers that had none, which they have from then on (see `Attention`).

    Pure, and to be compiled as a whole. Sums are float32 whatever the parameters are, and rounded once.

    Args:
      params: of all networks, by name.
      adapters: the changes of each.
      weights: of each adapter, by network. 0 changes no bit.
    """
    result = {}
    for path in dict.fromkeys(path for changes in adapters for path in changes):
        before = _before(params, path, [each[path] for each in adapters if path in each])
        value = jnp.asarray(before, jnp.float32)
        for changes, weight in zip(adapters, weights, strict=True):
            if path in changes:
                by = jnp.asarray(weight[path[0]], jnp.float32)
                value = jnp.where(by == 0, value, value + by * addition(changes[path], value))
        result[path] = value.astype(before.dtype)
    return result


def _before(params: Params, path: Path, changes: Sequence[Change]) -> Any:
    """A parameter; of a bias that is not there, zeros."""
    layer: Any = params
    for part in path[:-1]:
        layer = layer[part]
    if path[-1] == "bias" and path[-1] not in layer and isinstance(changes[0], Difference):
        return jnp.zeros(changes[0].values.shape, layer["kernel"].dtype)
    return layer[path[-1]]


def replaced(params: Params, leaves: Mapping[Path, Any]) -> Params:
    """A tree with some leaves in the place of others; what doesn't change is shared."""
    result = dict(params)
    by_child: dict[str, dict[Path, Any]] = {}
    for (first, *rest), leaf in leaves.items():
        if rest:
            by_child.setdefault(first, {})[tuple(rest)] = leaf
        else:
            result[first] = leaf
    return result | {name: replaced(params[name], inner) for name, inner in by_child.items()}


def by_network(networks: Iterable[str], weight: Any, text_weight: Any) -> dict[str, Any]:
    """The weight of an adapter in each of some networks: in the UNet, and in those that read text."""
    return {name: weight if name == UNET else text_weight for name in networks}


def apply(params: Params, lora: Lora, weight: float, text_weight: float | None = None) -> Params:
    """A model's parameters with an adapter.

    Args:
      params: of all networks, by name.
      weight: 1 is as trained; 0 leaves the parameters of the UNet what they are, and negative ones do the opposite.
      text_weight: the same for what reads text; `weight` if None.
    """
    weights = by_network(params, weight, weight if text_weight is None else text_weight)
    acting = {path: change for path, change in lora.changes.items() if weights[path[0]]}
    return replaced(params, changed(params, [acting], [weights]))
