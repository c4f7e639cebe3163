"""The digests of checkpoints: sha256 over every file that has a say in the images."""

import hashlib
import types
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sdjax.checkpoints.stored_tensor import CheckpointError


def digest_files(root: Path, files: Iterable[Path], hashed: Mapping[Path, str] = types.MappingProxyType({})) -> str:
    """sha256 over the names (from `root`) and contents of files, read side by side; `hashed` are known already."""

    def one(file: Path) -> str:
        return f"{file.relative_to(root).as_posix()} {hashed.get(file) or sha256_of(file)}\n"

    with ThreadPoolExecutor(4) as pool:
        return hashlib.sha256("".join(pool.map(one, sorted(files))).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """sha256 of a file's contents; raises `CheckpointError` if it is none, or can't be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {error.strerror}") from error


def digest_with(digest: str, changes: Mapping[str, str]) -> str:
    """The digest of a checkpoint of which something is said otherwise, in what is not empty; its own if nothing is."""
    said = "".join(f"{key} {changes[key]}\n" for key in sorted(changes) if changes[key])
    return hashlib.sha256(said.encode() + digest.encode()).hexdigest() if said else digest
