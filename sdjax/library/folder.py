"""A folder of named files of one kind: what a name in a prompt or a field means in it."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sdjax.library.finding import (
    FileState,
    FindingError,
    FolderListing,
    folders_under,
    has_ending,
    hint,
    plain,
    states_of,
    states_of_files,
    with_plain_ending,
)
from sdjax.messages import quoted

# How many places an error lists, and names that are not there whose errors are kept.
_LISTED, _MOST_MISSING = 5, 4096

# The files and folders of a name.
Places = dict[str, list[Path]]


class Kind(NamedTuple):
    """A kind of named file.

    name: as errors call it.
    setting: where a run's configuration names the folder.
    endings: of its files, in small letters; of two files that differ in it alone, the one that is first here is taken.
    is_one: whether a folder is itself one thing of this kind, and the files in it and below are parts of that.
    accepts: whether a file with such an ending is of this kind.
    name_inside: the name that is written in a file or folder, if there is one.
    beside: files beside a file that have a say in it too, where they are there.
    """

    name: str
    setting: str
    endings: tuple[str, ...]
    is_one: Callable[[FolderListing], bool] = lambda listing: False
    accepts: Callable[[Path], bool] = lambda file: True
    name_inside: Callable[[Path], str | None] = lambda place: None
    beside: Callable[[Path], tuple[Path, ...]] = lambda file: ()

    def states(self, place: Path) -> tuple[FileState, ...]:
        """The states of all files that have a say in a file or folder of this kind."""
        return states_of(place) if place.is_dir() else states_of_files((place, *self.beside(place)))


class _Names(NamedTuple):
    """Places by path from the folder, and by their own name.

    full_paths, full_names: of files, with the ending in small letters.
    """

    full_paths: Places
    paths: Places
    full_names: Places
    names: Places


class Folder:
    """The files of one kind in a folder and those within it, and the folders that are one thing of this kind.

    Each goes by its path from the folder and by its own name, with its ending or without; and by the name that is
    written in it, unless a file is called so. A path goes before a name, so that each can be meant. Names are compared
    as `plain` has them; of several that are the same then, the one that is written so letter by letter is meant.

    Attributes:
      root: the folder; None if there is none.
    """

    def __init__(self, folder: str | Path | None, kind: Kind) -> None:
        """Lists a folder.

        Args:
          folder: on this machine; None has no files.
          kind: of what is looked for in it.

        Raises:
          FindingError: if there is no such folder, or it can't be listed.
        """
        self.root = None if folder is None else Path(folder)
        self._kind = kind
        self._known = _Names({}, {}, {}, {})
        # Files that are parts of such a folder, and folders that are not known to be one.
        self._others = _Names({}, {}, {}, {})
        self._unlisted: list[str] = []
        self._problem_of = functools.lru_cache(_MOST_MISSING)(self._missing)
        if self.root is not None:
            self._list(self.root)

    def _list(self, root: Path) -> None:
        if not root.is_dir():
            raise FindingError(f"{self._kind.setting} = {root}: there is no such folder on this machine")

        def on_error(folder: Path, error: OSError) -> None:
            if folder == root:
                raise FindingError(f"{self._kind.setting} = {root}: it can't be listed ({error.strerror})")
            self._unlisted.append(f"{folder.relative_to(root).as_posix()} ({error.strerror})")

        wholes: set[Path] = set()
        for listing in folders_under(root, on_error):
            if listing.folder != root:
                is_one = self._kind.is_one(listing)
                _add(self._known if is_one else self._others, root, listing.folder, listing.folder.name)
                if is_one or listing.folder.parent in wholes:
                    wholes.add(listing.folder)
            names = self._others if listing.folder in wholes else self._known
            for file in listing.files:
                if has_ending(file, self._kind.endings) and self._kind.accepts(file):
                    _add(names, root, file, file.stem, with_plain_ending(file.name, self._kind.endings))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(
            plain(name) in table for table in (self._known.names, self._known.paths, self._inside)
        )

    def __iter__(self) -> Iterator[str]:
        """Names and paths without endings, and the names that are written in files."""
        return iter(dict.fromkeys((*self._known.names, *self._known.paths, *self._inside)))

    @functools.cached_property
    def _inside(self) -> Places:
        """By the names written in them; all of them are opened for it."""
        found: Places = {}
        for place in dict.fromkeys(each for places in self._known.paths.values() for each in places):
            name = self._kind.name_inside(place)
            if name is not None and plain(name) not in self._known.names and plain(name) not in self._known.paths:
                found.setdefault(plain(name), []).append(place)
        return found

    def find(self, name: str, others: tuple[str, ...] = ()) -> Path:
        """The file or folder of a name.

        Args:
          name: its path from the folder, or its own name.
          others: names that would be allowed besides, for errors.

        Raises:
          FindingError: if there is none, or there are several.
        """
        for spelling in dict.fromkeys((plain(name), plain(name.replace("\\", "/")))):
            full = with_plain_ending(spelling, self._kind.endings)
            for known in (self._known, self._others):
                for table, key in zip(known, (full, spelling, full, spelling), strict=True):
                    if found := table.get(key):
                        return self._one(found, name, "name one by its path from there")
                if known is self._known and (found := self._inside.get(spelling)):
                    return self._one(found, name, "this name is written in them: name one by its file's")
        raise FindingError(self._problem_of(name, others))

    def _one(self, found: list[Path], name: str, advice: str) -> Path:
        """The one of several that are called so; what several links lead to is one."""
        if len(found) == 1:
            return found[0]
        last = name.replace("\\", "/").rpartition("/")[2]
        exact = [place for place in found if last in (place.name, place.stem)] or found
        # Of files that differ in the ending alone, the preferred one.
        best: dict[Path, Path] = {}
        for place in sorted(exact, key=self._rank):
            best.setdefault(place.with_suffix("") if place.is_file() else place, place)
        if len({place.resolve() for place in best.values()}) > 1:
            listed = " and ".join(map(str, list(best.values())[:_LISTED]))
            raise FindingError(f"there are {len(best)} of {self._kind.name} {quoted(name)}: {listed}; {advice}")
        return next(iter(best.values()))

    def _rank(self, place: Path) -> int:
        ending = place.suffix.lower()
        return self._kind.endings.index(ending) if ending in self._kind.endings and place.is_file() else -1

    def _missing(self, name: str, others: tuple[str, ...]) -> str:
        kind, setting = self._kind.name, self._kind.setting
        if self.root is None:
            where = f": no folder of such files is given; set {setting}"
            return f"there is no {kind} {quoted(name)}{where}{hint(name, others)}"
        unlisted = ", ".join(self._unlisted[:_LISTED])
        note = f"; folders that can't be listed: {unlisted}" if unlisted else ""
        return f"there is no {kind} {quoted(name)} in {self.root}{hint(name, (*self, *others))}{note}"


def _add(known: _Names, root: Path, place: Path, name: str, full: str | None = None) -> None:
    above = place.parent.relative_to(root)
    for paths, names, called in ((known.paths, known.names, name), (known.full_paths, known.full_names, full)):
        if called is not None:
            paths.setdefault(plain((above / called).as_posix()), []).append(place)
            names.setdefault(plain(called), []).append(place)
