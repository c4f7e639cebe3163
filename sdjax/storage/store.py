"""A store: the files below a folder of a local disk, or below a prefix of a remote one."""

import abc
import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

from sdjax.storage.errors import StorageError, naming
from sdjax.storage.interruption import guarded
from sdjax.storage.jsonl import jsonl_line, read_lines

# Files that take their names when they are whole begin with this, and what a run holds of an output is called so; both
# with a dot, so that readers of data sets pass over them.
TEMPORARY = ".sdjax-tmp-"
LOCK = ".sdjax-lock"
# Of a listing: no folder is looked into but the one that is listed.
NO_FOLDERS = re.compile(r"(?!)")


class StoredFile(NamedTuple):
    """A file as a listing gives it.

    name: from the store's folder.
    size: in bytes.
    modified: in seconds since 1970.
    """

    name: str
    size: int
    modified: float


@dataclasses.dataclass(frozen=True)
class Store(abc.ABC):
    """The files below a folder or prefix; names are paths from there, their parts joined by `/`.

    Made from its URL and pickled as that: whatever client it takes is made where it is used. What is written under a
    name is there whole or not at all, whatever is killed in the meantime; one that is there already is replaced.

    All functions raise `StorageError`, which names the path and says what to do.

    Attributes:
      url: the folder's path, or a scheme and what is after it.
    """

    url: str

    # Whether another machine has to be asked, and what goes wrong then.
    remote: ClassVar[bool]
    errors: ClassVar[type[Exception]]

    # --- What each kind of store does its own way ---

    @abc.abstractmethod
    def path(self, name: str) -> str:
        """The whole path of a name."""

    @abc.abstractmethod
    def open(self, name: str) -> io.BufferedIOBase:
        """Opens a file for reading its bytes as they are: gzip is not undone."""

    @abc.abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Writes a whole file; folders are made. If it fails, nothing of it stays behind."""

    @abc.abstractmethod
    def replacing(self, name: str) -> AbstractContextManager[io.BufferedIOBase]:
        """A context with a stream, of which the file is made at its end; after any exception nothing is left of it."""

    @abc.abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file."""

    @abc.abstractmethod
    def list(self, prefix: str = "", folders: re.Pattern[str] | None = None) -> Iterator[StoredFile]:
        """The files whose names begin with `prefix`; none if there is no such folder.

        Args:
          prefix: of the names; one that ends with `/` is a folder.
          folders: of the folders to which `prefix` leads, those whose names match are looked into, and none within
            these; links, which lead anywhere, are passed over. None: all at any depth, links to files too, but for
            `lost+found`, where a disk keeps what was found after a crash.
        """

    @abc.abstractmethod
    def is_link(self, name: str) -> bool:
        """Whether a file or its folder is a link, which may lead out of the store."""

    @abc.abstractmethod
    def exclusive(self, note: Callable[[str], None]) -> AbstractContextManager[None]:
        """A context in which no other process is in one of the same store, as far as the store can tell.

        Args:
          note: tells the user of a store which can't.

        Raises:
          StorageError: if another process is, or the folder can't be made.
        """

    @abc.abstractmethod
    def remove_leftovers(self, folders: Mapping[str, re.Pattern[str]]) -> tuple[str, ...]:
        """Deletes the temporary files of killed processes and gives their names; safe beside others that go on.

        Args:
          folders: prefixes where these may be, and what is looked into there, as in `list`.
        """

    @abc.abstractmethod
    def _delete(self, name: str) -> None:
        """Deletes a file that is there; its errors are not named."""

    # --- What all have ---

    def get(self, name: str, limit: int = -1) -> bytes:
        """The bytes of a file, the first so many of them if there is a limit."""
        with self.open(name) as stream, self._naming(name):
            return stream.read(limit)

    def delete(self, name: str, missing_ok: bool = False) -> None:
        """Deletes a file; a `StorageError` if there is none, unless that may be."""
        if not missing_ok or self.exists(name):
            with self._naming(name):
                self._delete(name)

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes an object a line, streaming.

        Raises:
          ValueError: for NaN or infinity. What `rows` raises goes through, and nothing is written.
        """
        with self.replacing(name) as stream:
            for row in rows:
                line = jsonl_line(row)
                with self._naming(name):
                    stream.write(line)

    def read_jsonl(self, name: str) -> Iterator[dict[str, Any]]:
        """The objects of a file with one a line, streaming; an error names the line that is no whole object."""
        with self.open(name) as stream, self._naming(name):
            yield from read_lines(stream, self.path(name))

    @contextlib.contextmanager
    def removing(self, prefix: str) -> Iterator[None]:
        """A context at whose end, however it comes, the files right below the folder that begin so are deleted.

        What can't be deleted then stays for `remove_leftovers`.
        """

        def remove(_: object) -> None:
            with contextlib.suppress(StorageError):
                for file in list(self.list(prefix, NO_FOLDERS)):
                    self.delete(file.name, missing_ok=True)

        with guarded(lambda: None, remove, self.remote):
            try:
                yield
            finally:
                remove(None)

    def _naming(self, name: str) -> AbstractContextManager[None]:
        return naming(self.path(name), self.errors)
