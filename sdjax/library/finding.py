"""Files by name: which of a folder count, when two names are the same, and which ones are near.

Folders of users have links to other disks, endings in capitals, names that macOS writes with accents of their own, and
files that it lays beside others (`._x`, `.DS_Store`). All that is looked for by name goes through here.
"""

import bisect
import difflib
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sdjax.messages import quoted

# How like a name must be to be suggested, and letters of a name that are compared.
_CUTOFF, _MOST_LETTERS = 0.5, 200
# Names that are compared with one that is not there; of more, those next to it in the alphabet.
_MOST_COMPARED = 2000
# No path is longer.
_LONGEST = 4096
# By so many ways is a folder entered that links lead to: few links to each other make ways without end.
_MOST_WAYS = 8

# The path, size in bytes, and time of the last change in nanoseconds of a file.
FileState = tuple[str, int, int]


class FindingError(ValueError):
    """There is nothing of a name, or there are several; the message says where, and what is near."""


class FolderListing(NamedTuple):
    """What is in one folder, without companion files, by name."""

    folder: Path
    files: list[Path]


# --- Files ---


def is_companion(name: str) -> bool:
    """Whether a file or folder is one that macOS lays beside others on foreign disks and in archives."""
    return name.startswith("._") or name in ("__MACOSX", ".DS_Store")


def has_companion(path: str) -> bool:
    """Whether a path or address is that of a companion file, or of a file in a folder of them."""
    return any(map(is_companion, re.split(r"[/\\]", path)))


def folders_under(
    root: Path, on_error: Callable[[Path, OSError], None] = lambda folder, error: None
) -> Iterator[FolderListing]:
    """A folder and those within it, also behind links, with their files; the nearest first, then by their names.

    Where links lead around in a circle, it is gone through once; companion files are passed over.

    Args:
      root: the folder.
      on_error: called for each folder that can't be listed; it counts as empty.
    """
    ways: Counter[tuple[int, int]] = Counter()
    waiting = deque([(root, frozenset[tuple[int, int]]())])
    while waiting:
        folder, above = waiting.popleft()
        try:
            status = folder.stat()
            own = (status.st_dev, status.st_ino)
            ways[own] += 1
            if own in above or ways[own] > _MOST_WAYS:
                continue
            there = [path for path in sorted(folder.iterdir()) if not is_companion(path.name)]
        except OSError as error:
            on_error(folder, error)
            continue
        waiting += [(path, above | {own}) for path in there if path.is_dir()]
        yield FolderListing(folder, [path for path in there if path.is_file()])


def files_under(root: Path) -> Iterator[Path]:
    """All files of a folder and those within it, as `folders_under` lists them."""
    for listing in folders_under(root):
        yield from listing.files


def states_of(place: str | Path) -> tuple[FileState, ...]:
    """The states of a file, or of all files of a folder: others where one came, went or was written."""
    path = Path(place)
    return states_of_files(sorted(files_under(path)) if path.is_dir() else [path])


def states_of_files(files: Iterable[Path]) -> tuple[FileState, ...]:
    """The states of those of some files that are there."""
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        found.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(found)


# --- Names ---


def plain(name: str) -> str:
    """A name or path as it is compared: with composed accents, and no blanks at the ends of its parts."""
    if len(name) > _LONGEST:  # marks without end take a time that goes with their square
        return name
    return "/".join(part.strip() for part in unicodedata.normalize("NFC", name).split("/"))


def has_ending(file: Path, endings: Sequence[str]) -> bool:
    """Whether a file ends in one of some endings, in capitals or not."""
    return file.suffix.lower() in endings


def with_plain_ending(name: str, endings: Sequence[str]) -> str:
    """A name with its ending in small letters, if that is one of some endings."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) + suffix.lower() if suffix.lower() in endings else name


def beside(file: Path, ending: str) -> Path:
    """The file of the same name with another ending, in capitals or not; in small letters if there is none."""
    usual = file.with_suffix(ending)
    return next((each for each in (usual, file.with_suffix(ending.upper())) if each.is_file()), usual)


def find_path(path: str | Path, kind: str, others: Sequence[str] = (), elsewhere: str = "") -> Path:
    """What is at a path, whose accents may be of either form, and whose ending in capitals or not.

    Args:
      path: of a file or folder, or the name of one in the folder where the process is.
      kind: what is looked for, for errors.
      others: names that are allowed besides, for errors: those of what is bundled.
      elsewhere: what else might have been meant, for errors.

    Raises:
      FindingError: if there is nothing.
    """
    place = Path(path)
    try:
        if place.exists():
            return place
        found = _written_otherwise(place)
        if found is not None:
            return found
        near_by = [each.name for each in place.parent.iterdir()] if place.parent.is_dir() else []
    except (OSError, ValueError):  # too long, or with letters that no path has
        near_by = []
    known = [*others, *(str(place.parent / name) for name in near_by if not is_companion(name))]
    bundled = f"neither bundled ({', '.join(others)}) nor " if others else "not "
    looked = f"it is {bundled}a folder or file on this machine{elsewhere and f', {elsewhere}'}"
    raise FindingError(f"there is no {kind} {quoted(str(path))}: {looked}{hint(str(path), known)}")


def _written_otherwise(place: Path) -> Path | None:
    """What is at a path but for the form of its accents, blanks and the case of its ending."""
    root, *parts = place.parts if place.is_absolute() else (".", *place.parts)
    found = Path(root)
    for part in parts:
        if not (found / part).exists():
            alike = [each for each in sorted(found.iterdir()) if _folded(each.name) == _folded(part)]
            if not alike:
                return None
            part = alike[0].name
        found = found / part
    return found


def _folded(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return plain(name.removesuffix(suffix) + suffix.lower())


# --- Names that are near ---


def near(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The names most like one that is not there, in capitals or not."""
    by_letters = {plain(each).casefold(): each for each in known}
    wanted = plain(name[:_MOST_LETTERS]).casefold()
    compared = list(by_letters)
    if len(compared) > _MOST_COMPARED:
        compared.sort()
        start = max(0, bisect.bisect(compared, wanted) - _MOST_COMPARED // 2)
        compared = compared[start : start + _MOST_COMPARED]
    return [by_letters[each] for each in difflib.get_close_matches(wanted, compared, most, _CUTOFF)]


def hint(name: str, known: Iterable[str], most: int = 1) -> str:
    """What to add to an error about a name that is not there."""
    found = near(name, known, most)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
