"""Files and folders by name, in a folder of such."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from sdjax.checkpoints.stored import CheckpointError


def check_folder(folder: str | Path, setting: str) -> Path:
    """The folder that a setting names; raises `CheckpointError` if it is not there."""
    if not Path(folder).is_dir():
        raise CheckpointError(f"{setting} = {folder}: there is no such folder on this machine")
    return Path(folder)


def find_named(folder: str | Path | None, name: str, endings: Sequence[str], kind: str, setting: str) -> Path:
    """The folder of that name, or the file of that name with one of some endings, the first that is there.

    Args:
      folder: in which it is; None has none.
      name: its path from there, with or without the ending.
      endings: of such files, the one that is preferred first.
      kind: what is looked for, for errors.
      setting: where the folder is named, for errors.

    Raises:
      CheckpointError: if there is none.
    """
    if folder is None:
        raise CheckpointError(f"{kind} {name!r}: there is no folder of such files; set {setting}")
    root = check_folder(folder, setting)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{kind} {name!r}: expected a name of what is in {root}")
    try:
        return _found(root, name, endings, kind)
    except OSError as error:
        raise CheckpointError(f"{kind} {name!r} of {root}: {error.strerror}") from error


def _found(root: Path, name: str, endings: Sequence[str], kind: str) -> Path:
    whole = root / name
    for path in (whole, *(whole.with_name(whole.name + ending) for ending in endings)):
        if path.is_dir() or (path.is_file() and path.suffix in endings):
            return path
    there = [path.name.removesuffix(path.suffix if path.suffix in endings else "") for path in sorted(root.iterdir())]
    near = difflib.get_close_matches(name, there, 1, 0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise CheckpointError(f"{kind} {name!r}: there is no such file in {root}{hint}")
