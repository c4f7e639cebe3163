"""Finds a file (an adapter, ControlNet, upscaler, ...) by its name in the folder that a setting names."""

from collections.abc import Sequence
from pathlib import Path

from sdjax.checkpoints.stored_tensor import CheckpointError
from sdjax.library.finding import entry_named, has_ending, hint
from sdjax.messages import quoted

# Characters of the system's error that are quoted.
_MOST_QUOTED = 200


def check_folder(folder: str | Path, setting: str) -> Path:
    """The folder that a setting names; raises `CheckpointError` if it is not there."""
    if not Path(folder).is_dir():
        raise CheckpointError(f"{setting} = {folder}: there is no such folder on this machine")
    return Path(folder)


def find_file(folder: str | Path | None, name: str, endings: Sequence[str], kind: str, setting: str) -> Path:
    """The folder of a name, or the file of that name with one of some endings, whichever is there first.

    Args:
      folder: in which it is; None has none.
      name: its path from there, with or without the ending; accents in either form, endings in capitals or not.
      endings: of such files, the one that is preferred first.
      kind: what is looked for, for errors.
      setting: where the folder is named, for errors.

    Raises:
      CheckpointError: if there is none.
    """
    if folder is None:
        raise CheckpointError(f"{kind} {quoted(name)}: there is no folder of such files; set {setting}")
    root = check_folder(folder, setting)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{kind} {quoted(name)}: expected a name of what is in {root}")
    try:
        found = entry_named(root, name, endings)
        if found is not None:
            return found
        there = [path.stem if has_ending(path, endings) else path.name for path in sorted(root.iterdir())]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{kind} {quoted(name)} of {root}: {str(error)[:_MOST_QUOTED]}") from error
    raise CheckpointError(f"{kind} {quoted(name)}: there is no such file in {root}{hint(name, there)}")
