"""The parameters of a checkpoint's networks as they are stored, the same for whatever form it is in."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from sdjax.checkpoints import name_table
from sdjax.checkpoints.checkpoint import Checkpoint
from sdjax.checkpoints.diffusers_folder import read_diffusers_folder
from sdjax.checkpoints.original_names import standard_names
from sdjax.checkpoints.single_file import choose_tensors
from sdjax.checkpoints.streamed import Piece
from sdjax.checkpoints.tensors import Listing, ParamTensor, check_tensors, list_tensors, weight_files
from sdjax.families.family import Configs, Family
from sdjax.families.network import Network, NetworkConfig


class Parameter(NamedTuple):
    """One parameter of ours, in a file.

    part: the network's name.
    path: ours, within its network.
    names: what it is called in a diffusers folder; the first is what is written.
    shape: in which diffusers stores it.
    """

    part: str
    path: name_table.Path
    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    piece: Piece


def parameters(part: str, network: Network, config: NetworkConfig, chosen: Sequence[ParamTensor]) -> list[Parameter]:
    """The parameters of one network."""
    leaves = jax.tree.leaves_with_path(network.param_shapes(config))
    shapes = {tuple(key.key for key in keys): leaf.shape for keys, leaf in leaves}
    return [
        Parameter(
            part,
            each.path,
            name_table.file_names(each.path, network.table),
            each.tensor.dtype,
            name_table.shape_in_file(each.path, shapes[each.path]),
            Piece(each.tensor, each.rows),
        )
        for each in chosen
    ]


class Folder(NamedTuple):
    """A diffusers folder, of which no tensor has been read.

    configs: of the networks, by name.
    prediction_type: what its scheduler takes the UNet to predict.
    files: the weights' files of each network.
    """

    family: Family
    configs: Configs
    prediction_type: str
    files: Mapping[str, tuple[Path, ...]]
    parameters: list[Parameter]


def of_folder(root: Path, variant: str | None = None, pickled: bool = False) -> Folder:
    """What lies in a diffusers folder.

    Args:
      variant: for example "fp16"; None takes the plain files, or the only variant there is.
      pickled: whether pickled weights are taken where there are no others.

    Raises:
      CheckpointError, ConfigError: as `read_diffusers_folder`.
    """
    outline = read_diffusers_folder(root, variant, None, pickled=pickled)
    networks, configs = outline.family.networks, outline.configs
    files = {part: weight_files(root / part, network.stem, variant, pickled) for part, network in networks.items()}
    found: list[Parameter] = []
    for part, network in networks.items():
        tensors = list_tensors(files[part], pickled)
        chosen = check_tensors(tensors, network.param_shapes(configs[part]), network.table, str(root / part))
        found += parameters(part, network, configs[part], chosen)
    return Folder(outline.family, configs, outline.scheduler.prediction_type, files, found)


def of_file(file: Path, listing: Listing, outline: Checkpoint, ema: bool = False) -> list[Parameter]:
    """The parameters of the networks in a single file.

    Args:
      outline: what `read_file` says of the file.
      ema: take the averages of the UNet's.

    Raises:
      CheckpointError: as `read_file`.
    """
    networks, configs = outline.family.networks, outline.configs
    chosen = choose_tensors(file, standard_names(listing.tensors), configs, own_vae=True, ema=ema)
    return [each for part in chosen for each in parameters(part, networks[part], configs[part], chosen[part])]


def content_digest(found: Iterable[Parameter]) -> str:
    """sha256 of what a checkpoint's networks are made of, the same in whatever files the same numbers lie.

    Over all parameters, sorted by our path: a line of path, kind of number and shape, then the bytes. Configs, metadata
    and whatever else is in the files have no say.
    """
    whole = hashlib.sha256()
    for each in sorted(found, key=lambda each: (each.part, each.path)):
        whole.update(f"{'.'.join((each.part, *each.path))} {each.dtype} {each.shape}\n".encode())
        for data in each.piece.chunks():
            whole.update(data)
    return whole.hexdigest()
