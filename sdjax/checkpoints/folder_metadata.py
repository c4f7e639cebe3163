"""The text files of a diffusers folder in the metadata of a single file that was made of it.

Each stands in the safetensors file's metadata under its path in the folder: configs, a tokenizer that is not CLIP's
own, and the headers of weights' files that safetensors itself would not write just so.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from sdjax.checkpoints.stored_tensor import CheckpointError

_KEY = "sdjax:"
# A file of the folder, or of a folder in it, but for the one in which `convert` keeps its own account.
_PATH = re.compile(r"(?!original/)([A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*\.(json|txt|safetensors)", re.ASCII)
WEIGHTS = ".safetensors"


def folder_texts(metadata: Mapping[str, str], where: Path) -> dict[str, str]:
    """The texts by their path in the folder; of a file of weights it is the header.

    Args:
      metadata: of a single file.
      where: names the file in errors.

    Raises:
      CheckpointError: if a path leads out of the folder, or through a file.
    """
    found = {key.removeprefix(_KEY): text for key, text in metadata.items() if key.startswith(_KEY)}
    folders = {path.rpartition("/")[0] for path in found}
    for path in found:
        if not _PATH.fullmatch(path):
            raise CheckpointError(f"{where}: its metadata name {path[:100]!r}, which is no file of a diffusers folder")
        if path in folders:
            raise CheckpointError(f"{where}: its metadata have {path[:100]!r} both as a file and as a folder")
    return found


def to_metadata(texts: Mapping[str, str]) -> dict[str, str]:
    """The metadata from which `folder_texts` gives these texts."""
    return {_KEY + path: text for path, text in sorted(texts.items())}


def is_folder_path(path: str) -> bool:
    """Whether a path in a folder is that of a text which metadata can hold."""
    return bool(_PATH.fullmatch(path))


def is_folder_key(key: str) -> bool:
    """Whether a key of metadata holds such a text."""
    return key.startswith(_KEY)
