"""What all adapter files share: their errors, their hashes, and what tensors lie in them."""

from pathlib import Path
from typing import NamedTuple

from sdjax.checkpoints.hashes import hash_file
from sdjax.checkpoints.tensors import CheckpointError, Tensor, list_file

# Characters of a hash that A1111 writes into its metadata.
_SHORT = 12


class AdapterError(ValueError):
    """An adapter file is not one, is broken, or is for another model; the message names the file and what was found."""


class AdapterFile(NamedTuple):
    """An adapter's file as it lies on the disk.

    name: the file's without its suffix, by which prompts call it.
    digest: sha256 of the whole file.
    short_hash: A1111's: 12 hexadecimal digits of the sha256 of the tensors of a safetensors file without its header
      (which users edit: it holds titles and tags), or of the whole of any other file.
    tensors, metadata: see `sdjax.checkpoints.tensors.list_file`.
    """

    file: Path
    name: str
    digest: str
    short_hash: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def open_adapter(file: Path, pickled: bool = False) -> AdapterFile:
    """Lists what lies in an adapter's file and works out its hashes; no tensor is read into memory.

    Args:
      file: safetensors; or .pt, .bin, .ckpt, .pth where `pickled` allows it.

    Raises:
      AdapterError: if the file is missing, or not what its name says.
    """
    try:
        listing = list_file(file, pickled)
        hashes = hash_file(file)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    except OSError as error:
        raise AdapterError(f"{file} can't be read ({error})") from error
    short = hashes.adapter or hashes.sha256[:_SHORT]
    return AdapterFile(file, file.stem, hashes.sha256, short, listing.tensors, listing.metadata)
