"""Tensors in safetensors files, listed at once and read one by one."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sdjax.checkpoints import names

Params = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint is not whole, or not what its config says; the message names the file and the tensors."""


class Tensor(NamedTuple):
    """A tensor that lies in a file; nothing of it is read yet."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # in safetensors' words: F32, F16, BF16, ...


# The kinds of number a parameter may be stored in.
_FLOATS = ("F64", "F32", "F16", "BF16")
# Bytes read from open files before they are closed.
_MAPPED = 1 << 28
# How many names an error lists.
_LISTED = 8


def list_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """What lies in some files, by name.

    Raises:
      CheckpointError: if a file is missing, truncated or no safetensors, or two hold the same name.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a mapping: it has no other way to iterate)
                    if name in found:
                        raise CheckpointError(f"{file}: tensor {name!r} is also in {found[name].file}")
                    part = opened.get_slice(name)
                    found[name] = Tensor(file, name, tuple(part.get_shape()), part.get_dtype())
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing; copy it beside the other files of the checkpoint") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} can't be read as safetensors ({error}); it may be truncated: fetch it again, compare its size"
            ) from error
    return found


Chosen = list[tuple[names.Path, Tensor]]


def check_tensors(tensors: Mapping[str, Tensor], shapes: Params, table: names.NameTable, where: str) -> Chosen:
    """Finds the tensor of each parameter, in the order of the tree's leaves.

    Args:
      tensors: what the files hold.
      shapes: the network's tree, of anything with a `shape` (`jax.eval_shape`).
      table: how the network's tensors are called.
      where: names the checkpoint's part in errors.

    Raises:
      CheckpointError: if tensors are missing, left over, of another shape, or no floating-point numbers.
    """
    chosen: Chosen = []
    missing, misshapen = [], []
    used = set()
    for keys, leaf in jax.tree.leaves_with_path(shapes):
        path = tuple(key.key for key in keys)
        candidates = names.file_names(path, table)
        tensor = next((tensors[name] for name in candidates if name in tensors), None)
        if tensor is None:
            missing.append(candidates[0])
            continue
        expected = names.shape_in_file(path, leaf.shape)
        if tensor.shape != expected:
            misshapen.append(f"{tensor.name} is {tensor.shape}, not {expected}")
        elif tensor.dtype not in _FLOATS:
            misshapen.append(f"{tensor.name} holds {tensor.dtype}, not one of {', '.join(_FLOATS)}")
        used.add(tensor.name)
        chosen.append((path, tensor))
    spare = [name for name in tensors if name not in used and not _ignored(name, table)]
    problems = [
        f"{title}: {', '.join(items[:_LISTED])}" + (f" and {len(items) - _LISTED} more" if len(items) > _LISTED else "")
        for title, items in (("missing", missing), ("left over", spare), ("wrong", misshapen))
        if items
    ]
    if problems:
        raise CheckpointError(f"{where}: the tensors are not those its config describes. " + "; ".join(problems))
    return chosen


def read_params(
    tensors: Mapping[str, Tensor], shapes: Params, table: names.NameTable, where: str, dtype: DTypeLike
) -> Params:
    """Reads a network's parameters, each straight to its place, cast once to `dtype`.

    Other arguments and errors are those of `check_tensors`.
    """
    chosen = check_tensors(tensors, shapes, table, where)
    return jax.tree.unflatten(jax.tree.structure(shapes), _load(chosen, dtype))


def _ignored(name: str, table: names.NameTable) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in table.ignored)


def _load(chosen: Chosen, dtype: DTypeLike) -> list[Shaped[np.ndarray, "..."]]:
    """Reads file by file; only one tensor is in memory twice at any moment.

    An open file is mapped, and pages once read stay resident: so files are opened anew from time to time.
    """
    opened: dict[Path, Any] = {}
    mapped = 0
    result = []
    for path, tensor in chosen:
        if mapped > _MAPPED:
            opened, mapped = {}, 0
        if tensor.file not in opened:
            opened[tensor.file] = safe_open(tensor.file, framework="numpy")
        stored = opened[tensor.file].get_tensor(tensor.name)
        mapped += stored.nbytes
        result.append(np.ascontiguousarray(names.to_ours(path, stored), dtype=jnp.dtype(dtype)))
    return result


def write_params(params: Params, table: names.NameTable, file: Path, dtype: DTypeLike) -> None:
    """Writes a network's parameters as one safetensors file under the names that diffusers expects."""
    leaves = jax.tree.flatten_with_path(params)[0]
    tensors = {}
    for keys, leaf in leaves:
        path = tuple(key.key for key in keys)
        tensors[names.file_names(path, table)[0]] = names.to_file(path, np.asarray(leaf).astype(jnp.dtype(dtype)))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})


def weight_files(folder: Path, stem: str, variant: str | None) -> tuple[Path, ...]:
    """The safetensors files of one network of a diffusers folder.

    Args:
      folder: for example `unet`.
      stem: `diffusion_pytorch_model` or `model`.
      variant: "fp16" for the files so marked; None for the plain ones, or the only ones there.

    Raises:
      CheckpointError: if there are none, or only pickled ones, or an index names a file elsewhere.
    """
    marks = [f".{variant}"] if variant else ["", *_variants_in(folder, stem)]
    for mark in marks:
        for index in (f"{stem}.safetensors.index{mark}.json", f"{stem}{mark}.safetensors.index.json"):
            if (folder / index).is_file():
                return _files_of_index(folder / index)
        single = folder / f"{stem}{mark}.safetensors"
        if single.is_file():
            return (single,)
    wanted = f"{stem}{marks[0]}.safetensors"
    pickled = sorted(path.name for pattern in ("*.bin", "*.ckpt", "*.pt") for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder / wanted} is missing; there is {pickled[0]}, but pickled weights can run code and are not "
            "read: save the checkpoint again with safe_serialization=True"
        )
    raise CheckpointError(f"{folder / wanted} is missing, and no sharded index or variant of it is there either")


def _variants_in(folder: Path, stem: str) -> list[str]:
    """The marks (".fp16") of the variants that a folder has, if it has just one."""
    patterns = (
        rf"{stem}(\.\w+)(?:-\d+-of-\d+)?\.safetensors",
        rf"{stem}\.safetensors\.index(\.\w+)\.json",
        rf"{stem}(\.\w+)\.safetensors\.index\.json",
    )
    names = [path.name for path in folder.glob(f"{stem}.*")]
    found = {match[1] for name in names for pattern in patterns if (match := re.fullmatch(pattern, name))}
    return sorted(found) if len(found) == 1 else []


def _files_of_index(index: Path) -> tuple[Path, ...]:
    try:
        listed = json.loads(index.read_bytes())["weight_map"]
        files = sorted(set(listed.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors shards ({error!r})") from error
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is no safetensors file in its own folder")
    return tuple(index.parent / name for name in files)
