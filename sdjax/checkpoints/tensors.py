"""Tensors in safetensors files, listed at once and read one by one."""

import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike
from safetensors.numpy import save_file

from sdjax.checkpoints import name_table
from sdjax.checkpoints.json_file import MOST_INDEX_BYTES, read_json
from sdjax.checkpoints.load_params import NetworkTensors, Params, ParamTensor, load_networks, load_params
from sdjax.checkpoints.pickled import is_pickled, read_pickle
from sdjax.checkpoints.stored_tensor import DTYPES, CheckpointError, Tensor, check_shape, read_tensor

__all__ = [
    "CheckpointError",
    "Listing",
    "MissingWeightsError",
    "NetworkTensors",
    "ParamTensor",
    "Params",
    "Tensor",
    "check_layers",
    "check_tensors",
    "list_file",
    "list_tensors",
    "load_networks",
    "load_params",
    "read_tensor",
    "weight_files",
    "write_params",
]


# The kinds of number a parameter may be stored in.
FLOATS = ("F64", "F32", "F16", "BF16")
# The header of a safetensors file in bytes, and the brackets in it: parsed it may take ten times as much memory. That
# of a whole checkpoint has 200 kB, and 3 brackets for each of 1200 tensors; metadata come to a few MB at most.
_MOST_HEADER = 1 << 24
_MOST_BRACKETS = 400_000
# The longest name of a tensor.
_MOST_NAME = 1000
# How many names an error lists.
_LISTED = 8


# The weights that torch pickled, where they are called otherwise.
_PICKLED_STEMS = {"model": "pytorch_model"}


class MissingWeightsError(CheckpointError):
    """There are no files of a network's weights, or none that are allowed."""


class Listing(NamedTuple):
    """What lies in a file.

    metadata: what stands beside the tensors, as text.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def list_file(file: Path, pickled: bool = False) -> Listing:
    """What lies in one file, read from its header alone.

    Args:
      file: safetensors, or what torch pickled (.ckpt, .pt, .bin, .pth), whatever its name.
      pickled: whether the second is allowed. Of a file with a `state_dict`, that is listed; values in each other get
        names joined by dots.

    Raises:
      CheckpointError: if the file is missing, damaged, or pickled where that is not allowed.
    """
    try:
        with file.open("rb") as opened:
            if not is_pickled(opened.read(16)):
                return _list_safetensors(file, opened)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; copy it beside the other files of the checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{file} can't be read ({error})") from error
    if not pickled:
        raise CheckpointError(
            f"{file} is a pickled file, which can hold code. Fetch it as safetensors, or allow it (`pickled`): its "
            "tensors are then read by a reader that runs nothing"
        )
    return _list_pickled(file)


def list_tensors(files: Iterable[Path], pickled: bool = False) -> dict[str, Tensor]:
    """What lies in some files, by name.

    Args:
      pickled: as for `list_file`.

    Raises:
      CheckpointError: if a file is missing, damaged, or pickled where that is not allowed, or two hold the same name.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in list_file(file, pickled).tensors.items():
            if name in found:
                raise CheckpointError(f"{file}: tensor {name!r} is also in {found[name].file}")
            found[name] = tensor
    return found


def _list_safetensors(file: Path, opened: io.BufferedReader) -> Listing:
    """Parses a header; what it admits is what safetensors' own reader admits, with sizes that are bounded before.

    That reader gives no offsets, and maps the file: here one reading serves the digest too (see `reading`).
    """
    size = opened.seek(0, os.SEEK_END)
    opened.seek(0)
    length = int.from_bytes(opened.read(8), "little")
    try:
        if size < 8 or length > size - 8:
            raise ValueError(f"its header would have {length} bytes, but the file has {size}")
        if length > _MOST_HEADER:
            raise ValueError(f"its header has {length} bytes, more than {_MOST_HEADER}")
        text = opened.read(length)
        if text.count(b"[") + text.count(b"{") > _MOST_BRACKETS:
            raise ValueError(f"its header has more than {_MOST_BRACKETS} brackets")
        header = json.loads(text.decode(), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not texts")
        "".join(itertools.chain(*metadata.items())).encode()  # halves of characters, which could not be printed
        tensors = {name: _tensor(file, name, entry, 8 + length) for name, entry in header.items()}
        place = 8 + length
        for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
            if tensor.offset != place:
                raise ValueError(f"tensor {tensor.name!r} does not begin where the one before it ends")
            place += tensor.nbytes
        if place != size:
            raise ValueError(f"its tensors end at byte {place}, but the file has {size}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} can't be read as safetensors ({str(error)[:_MOST_NAME]}); it may be truncated: fetch it again, "
            "compare its size"
        ) from error
    return Listing(tensors, metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which no key comes twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("its header says one name twice")
    return made


def _tensor(file: Path, name: str, entry: Any, start: int) -> Tensor:
    """One entry of a header; offsets count from `start`.

    Raises:
      ValueError: if it is not as it must be.
    """
    _check_name(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name!r} holds {str(dtype)[:_LISTED]!r}, not one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"{name!r} has no list of lengths, or not two offsets")
    check_shape(shape, repr(name))
    if not all(type(offset) is int and offset >= 0 for offset in offsets):
        raise ValueError(f"{name!r} has offsets that are no counts")
    tensor = Tensor(file, name, tuple(shape), dtype, start + offsets[0])
    if tensor.nbytes != offsets[1] - offsets[0]:
        raise ValueError(f"{name!r} is {tensor.shape} of {dtype} in {offsets[1] - offsets[0]} bytes")
    return tensor


def _check_name(name: str) -> None:
    if len(name) > _MOST_NAME or not name.isprintable():
        raise ValueError(f"a tensor's name can't be printed, or has more than {_MOST_NAME} characters")


def _list_pickled(file: Path) -> Listing:
    value = read_pickle(file)
    beside = value if isinstance(value, dict) else {}
    metadata = {str(key): str(each) for key, each in beside.items() if isinstance(each, str | int | float)}
    if isinstance(beside.get("state_dict"), dict):
        value = value["state_dict"]
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flat(value, ""):
        try:
            _check_name(name)
            if name in tensors:
                raise ValueError(f"tensor {name!r} is there twice")
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}") from error
        tensors[name] = tensor._replace(name=name)
    return Listing(tensors, metadata)


def _flat(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a value, by names joined by dots."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(each, f"{name}.{key}" if name else str(key))


# Layers of a network that is built whatever its files hold, for which errors name the missing tensors.
_BUILT_AT_ONCE = 100


def check_layers(layers: int, tensors: Sized, where: str) -> None:
    """Raises `CheckpointError` if a config says more layers than its files have tensors, before any is built."""
    if layers > max(len(tensors), _BUILT_AT_ONCE):
        raise CheckpointError(
            f"{where}: its config makes a network of {layers} layers, but its files hold {len(tensors)} tensors: "
            "they do not belong together, or a file is missing"
        )


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Params, table: name_table.NameTable, where: str
) -> list[ParamTensor]:
    """Finds the tensor of each parameter, in the order of the tree's leaves.

    Args:
      tensors: what the files hold.
      shapes: the network's tree, of anything with a `shape` (`jax.eval_shape`).
      table: how the network's tensors are called.
      where: names the checkpoint's part in errors.

    Raises:
      CheckpointError: if tensors are missing, left over, of another shape, or no floating-point numbers.
    """
    chosen: list[ParamTensor] = []
    missing, misshapen = [], []
    used = set()
    for keys, leaf in jax.tree.leaves_with_path(shapes):
        path = tuple(key.key for key in keys)
        candidates = name_table.file_names(path, table)
        tensor = next((tensors[name] for name in candidates if name in tensors), None)
        if tensor is None:
            missing.append(candidates[0])
            continue
        expected = name_table.shape_in_file(path, leaf.shape)
        if tensor.shape != expected:
            misshapen.append(f"{tensor.name} is {tensor.shape}, not {expected}")
        elif tensor.dtype not in FLOATS:
            misshapen.append(f"{tensor.name} holds {tensor.dtype}, not one of {', '.join(FLOATS)}")
        used.add(tensor.name)
        chosen.append(ParamTensor(path, tensor))
    spare = [name for name in tensors if name not in used and not _ignored(name, table)]
    problems = [
        f"{title}: {', '.join(items[:_LISTED])}" + (f" and {len(items) - _LISTED} more" if len(items) > _LISTED else "")
        for title, items in (("missing", missing), ("left over", spare), ("wrong", misshapen))
        if items
    ]
    if problems:
        raise CheckpointError(f"{where}: the tensors are not those its config describes. " + "; ".join(problems))
    return chosen


def _ignored(name: str, table: name_table.NameTable) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in table.ignored)


def write_params(params: Params, table: name_table.NameTable, file: Path, dtype: DTypeLike) -> None:
    """Writes a network's parameters as one safetensors file under the names that diffusers expects."""
    leaves = jax.tree.flatten_with_path(params)[0]
    tensors = {}
    for keys, leaf in leaves:
        path = tuple(key.key for key in keys)
        tensors[name_table.file_names(path, table)[0]] = name_table.to_file(
            path, np.asarray(leaf).astype(jnp.dtype(dtype))
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})


def pickled_stem(stem: str) -> str:
    """What the weights' files of a network are called where they are pickled."""
    return _PICKLED_STEMS.get(stem, stem)


def weight_files(folder: Path, stem: str, variant: str | None, pickled: bool = False) -> tuple[Path, ...]:
    """The files of weights of one network of a diffusers folder: safetensors, or where there are none, pickled ones.

    Args:
      folder: for example `unet`.
      stem: `diffusion_pytorch_model` or `model`, as safetensors are called.
      variant: "fp16" for the files so marked; None for the plain ones, or the only ones there.
      pickled: whether pickled ones are allowed.

    Raises:
      CheckpointError: if an index names a file elsewhere.
      MissingWeightsError: if there are none, or only pickled ones which are not allowed.
    """
    kinds = [(stem, ".safetensors"), *([(pickled_stem(stem), ".bin")] if pickled else [])]
    for start, suffix in kinds:
        for mark in [f".{variant}"] if variant else ["", *_variants_in(folder, start, suffix)]:
            for index in (f"{start}{suffix}.index{mark}.json", f"{start}{mark}{suffix}.index.json"):
                if (folder / index).is_file():
                    return _files_of_index(folder / index, suffix)
            single = folder / f"{start}{mark}{suffix}"
            if single.is_file():
                return (single,)
    wanted = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    others = sorted(path.name for pattern in ("*.bin", "*.ckpt", "*.pt") for path in folder.glob(pattern))
    if others and not pickled:
        raise MissingWeightsError(
            f"{folder / wanted} is missing; there is {others[0]}, but pickled weights can run code and are not read "
            "unless you allow it (`pickled`: by a reader that runs nothing), or save the checkpoint again with "
            "safe_serialization=True"
        )
    raise MissingWeightsError(f"{folder / wanted} is missing, and no sharded index or variant of it is there either")


def _variants_in(folder: Path, stem: str, suffix: str) -> list[str]:
    """The marks (".fp16") of the variants that a folder has, if it has just one."""
    end = re.escape(suffix)
    patterns = (
        rf"{stem}(\.\w+)(?:-\d+-of-\d+)?{end}",
        rf"{stem}{end}\.index(\.\w+)\.json",
        rf"{stem}(\.\w+){end}\.index\.json",
    )
    names = [path.name for path in folder.glob(f"{stem}.*")]
    found = {match[1] for name in names for pattern in patterns if (match := re.fullmatch(pattern, name))}
    return sorted(found) if len(found) == 1 else []


def _files_of_index(index: Path, suffix: str) -> tuple[Path, ...]:
    try:
        listed = read_json(index, MOST_INDEX_BYTES)["weight_map"]
        files = sorted(set(listed.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        kind = suffix.removeprefix(".")
        raise CheckpointError(f"{index} is not an index of {kind} shards ({str(error)[:_MOST_NAME]})") from error
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(suffix):
            raise CheckpointError(
                f"{index} names {repr(name)[:_MOST_NAME]}, which is no {suffix} file in its own folder"
            )
    return tuple(index.parent / name for name in files)
