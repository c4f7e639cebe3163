"""Folders that tests of stores look into."""

import re
from pathlib import Path

from sdjax.storage import NO_FOLDERS, open_store

# Where temporary files may be: as in an output of loose files.
FOLDERS = {"": NO_FOLDERS, "images/": re.compile("[0-9a-f]{2}")}


def files_below(folder: Path) -> list[str]:
    """The names of all files of a folder, from there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def remove_leftovers(url: Path | str) -> tuple[str, ...]:
    """Deletes the temporary files of killed processes in a store; gives their names."""
    return open_store(str(url)).remove_leftovers(FOLDERS)
