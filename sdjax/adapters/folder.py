"""Adapters in a folder, by the names that prompts call them by."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from sdjax.adapters.files import AdapterError
from sdjax.library.finding import files_under, has_ending, hint, plain, with_plain_ending
from sdjax.messages import quoted

# What files of adapters end in.
_ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
# Names of files in folders that peft and diffusers write.
_IN_FOLDERS = ("adapter_model", "pytorch_lora_weights")
# Pictures in which A1111 hides embeddings name them so, before the pixels; all others are previews.
_EMBEDDED, _HEAD = b"sd-ti-embedding", 4096
# How many files an error lists.
_LISTED = 5

Files = dict[str, list[Path]]


class Folder:
    """The files of one kind.

    Each goes by its name without ending, or by its path from the folder where two have one name; with the ending too;
    and by the name that is written in it, unless a file is called so. Names are compared as `plain` has them.
    """

    def __init__(
        self,
        folder: str | Path | None,
        kind: str,
        setting: str,
        name_inside: Callable[[Path], str | None] = lambda file: None,
    ) -> None:
        """Lists a folder and those within it, also behind links.

        Args:
          folder: on this machine; None has no files.
          kind: what is in it, for errors.
          setting: where the folder is named, for errors.
          name_inside: gives the name that is written in a file, if there is one.

        Raises:
          AdapterError: if there is no such folder.
        """
        self._kind, self._setting, self._name_inside = kind, setting, name_inside
        self._names: Files = {}
        self._with_endings: Files = {}
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        if not self.folder.is_dir():
            raise AdapterError(f"{setting} = {folder}: there is no such folder on this machine")
        by_path: dict[Path, Path] = {}
        for file in files_under(self.folder):
            if has_ending(file, _ENDINGS) or (has_ending(file, (".png",)) and _holds_embedding(file)):
                whole = file.parent if self.is_whole_folder(file) else file.with_suffix("")
                if whole not in by_path or _rank(file) < _rank(by_path[whole]):
                    by_path[whole] = file
                self._add(self._with_endings, file.with_name(with_plain_ending(file.name, _ENDINGS)), file)
        for whole, file in by_path.items():
            self._add(self._names, whole, file)

    def _add(self, files: Files, called: Path, file: Path) -> None:
        assert self.folder is not None
        path = plain(called.relative_to(self.folder).as_posix())
        for name in {path.rpartition("/")[2], path}:
            files.setdefault(name, []).append(file)

    def is_whole_folder(self, file: Path) -> bool:
        """Whether a file is the one of a folder, as peft and diffusers write them, all with the same name."""
        return file.stem in _IN_FOLDERS and file.parent != self.folder

    @functools.cached_property
    def _inside(self) -> Files:
        """Files by the names written in them; all of them are opened for it."""
        found: Files = {}
        for file in self.files():
            name = self._name_inside(file)
            if name is not None and plain(name) not in self._names:
                found.setdefault(plain(name), []).append(file)
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self._names
        yield from self._inside

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (plain(name) in self._names or plain(name) in self._inside)

    def files(self) -> Iterator[Path]:
        """All files."""
        return iter(dict.fromkeys(file for files in self._names.values() for file in files))

    def file(self, name: str) -> Path:
        """The file of a name.

        Raises:
          AdapterError: if there is none, or there are two.
        """
        if self.folder is None:
            raise AdapterError(f"{self._kind} {quoted(name)}: there is no folder of such files; set {self._setting}")
        for spelling in (plain(name), plain(name.replace("\\", "/"))):
            whole = with_plain_ending(spelling, _ENDINGS)
            if found := self._names.get(spelling) or self._with_endings.get(whole):
                return self._one(found, name, f"have this name; say the path from {self.folder}")
            if found := self._inside.get(spelling, []):
                return self._one(found, name, "have this name inside; say that of the file")
        raise AdapterError(f"{self._kind} {quoted(name)}: there is no such file in {self.folder}{hint(name, self)}")

    def _one(self, found: list[Path], name: str, why: str) -> Path:
        """The one file of several of a name: what is called so letter by letter, and links to one file are one."""
        exact = [file for file in found if name.rpartition("/")[2] in _spellings(file)] or found
        if len({file.resolve() for file in exact}) > 1:
            raise AdapterError(f"{self._kind} {quoted(name)}: {' and '.join(map(str, exact[:_LISTED]))} {why}")
        return exact[0]


def _spellings(file: Path) -> tuple[str, ...]:
    """What a file is called on the disk, without the folders before it."""
    return file.stem, file.name, file.parent.name


def _rank(file: Path) -> int:
    """Which of several files of one name is taken: what was saved again as safetensors is the same, and no pickle."""
    return _ENDINGS.index(file.suffix.lower()) if has_ending(file, _ENDINGS) else len(_ENDINGS)


def _holds_embedding(file: Path) -> bool:
    with file.open("rb") as stream:
        return _EMBEDDED in stream.read(_HEAD)
