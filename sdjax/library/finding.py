"""Files by name: which of a folder count, when two names are the same, and which ones are near.

Folders of users have links to other disks, endings in capitals, names that macOS writes with accents of their own, and
files that it lays beside others (`._x`). All that is looked for by name goes through here.
"""

import difflib
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

# How like a name must be to be suggested, and letters of a name that are looked at and shown.
_CUTOFF, _MOST_LETTERS = 0.5, 200
# No path is longer.
_LONGEST = 4096
# By so many ways is a folder entered that links lead to: few links to each other make ways without end.
_MOST_WAYS = 8


def is_companion(name: str) -> bool:
    """Whether a file or folder is one that macOS lays beside others on foreign disks and in archives."""
    return name.startswith("._") or name == "__MACOSX"


def has_companion(path: str) -> bool:
    """Whether a path or address is that of a companion file, or of a file in a folder of them."""
    return any(map(is_companion, re.split(r"[/\\]", path)))


def files_under(root: Path) -> Iterator[Path]:
    """All files of a folder and those within it, also behind links; the nearest first, then by their names.

    Where links lead around in a circle, it is gone through once; companion files are passed over.
    """
    ways: Counter[tuple[int, int]] = Counter()
    waiting = deque([(root, frozenset[tuple[int, int]]())])
    while waiting:
        folder, above = waiting.popleft()
        status = folder.stat()
        own = (status.st_dev, status.st_ino)
        ways[own] += 1
        if own in above or ways[own] > _MOST_WAYS:
            continue
        for path in _entries(folder):
            if path.is_dir():
                waiting.append((path, above | {own}))
            elif path.is_file():
                yield path


def state_of(place: str | Path) -> tuple[tuple[str, int, int, int], ...]:
    """What there is of a file or folder now: another where a file in it came, went or was written."""
    path = Path(place)
    files = sorted(files_under(path)) if path.is_dir() else [path] if path.is_file() else []
    found = ((str(file), file.stat()) for file in files)
    return tuple((name, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for name, status in found)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, but companion files; nothing where it may not be listed."""
    try:
        return [path for path in sorted(folder.iterdir()) if not is_companion(path.name)]
    except PermissionError:
        return []


def plain(name: str) -> str:
    """A name or path as it is compared: with composed accents, and no blanks at the ends of its parts."""
    if len(name) > _LONGEST:  # marks without end take a time that goes with their square
        return name
    return "/".join(part.strip() for part in unicodedata.normalize("NFC", name).split("/"))


def has_ending(file: Path, endings: Sequence[str]) -> bool:
    """Whether a file ends in one of some endings, in capitals or not."""
    return file.suffix.lower() in endings


def beside(file: Path, ending: str) -> Path:
    """The file of the same name with another ending, in capitals or not; in small letters if there is none."""
    usual = file.with_suffix(ending)
    return next((each for each in (usual, file.with_suffix(ending.upper())) if each.is_file()), usual)


def entry_named(root: Path, name: str, endings: Sequence[str]) -> Path | None:
    """The folder of that name in a folder, or the file of that name with one of some endings.

    Args:
      name: its path from there, with or without the ending.
      endings: of such files, the one that is preferred first.

    Raises:
      OSError: if a folder can't be listed.
    """
    *folders, last = PurePosixPath(name).parts or (".",)
    for part in folders:
        below = _alike(root, part, lambda path: [path.name] if path.is_dir() else [])
        if not below:
            return None
        root = below[0]
    if last == ".":
        return root if root.is_dir() else None

    last = with_plain_ending(last, endings)

    def names(path: Path) -> list[str]:
        if path.is_dir():
            return [path.name]
        whole = with_plain_ending(path.name, endings)
        return [whole, path.stem] if has_ending(path, endings) and path.is_file() else []

    def rank(path: Path) -> tuple[bool, bool, int]:
        ending = path.suffix.lower()
        return last not in names(path), path.stem == last, endings.index(ending) if ending in endings else -1

    return min(_alike(root, last, names), key=rank, default=None)


def with_plain_ending(name: str, endings: Sequence[str]) -> str:
    """A name with its ending in small letters, if that is one of some endings."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) + suffix.lower() if suffix.lower() in endings else name


def _alike(root: Path, name: str, names: Callable[[Path], list[str]]) -> list[Path]:
    """What in a folder has that name; what has it letter by letter goes first."""
    there = [path for path in sorted(root.iterdir()) if not is_companion(path.name)]
    found = [path for path in there if plain(name) in map(plain, names(path))]
    return sorted(found, key=lambda path: name not in names(path))


def near(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The names most like one that is not there, in capitals or not."""
    by_letters = {plain(each).casefold(): each for each in known}
    found = difflib.get_close_matches(plain(name[:_MOST_LETTERS]).casefold(), by_letters, most, _CUTOFF)
    return [by_letters[each] for each in found]


def hint(name: str, known: Iterable[str]) -> str:
    """What to add to an error about a name that is not there."""
    found = near(name, known)
    return f" (did you mean {found[0]!r}?)" if found else ""
