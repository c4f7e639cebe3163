"""A prefix of a remote store, on whatever Beam's filesystems reach.

There are two ways to write, and in both the name never holds less than the whole:

- an object store: one put of the whole object, which is atomic there (renaming is copying);
- other remote folders (HDFS), and long streams to an object store: a temporary name, then renamed.

There are no locks: `remove_leftovers` deletes what nobody has touched for a day.
"""

import contextlib
import io
import posixpath
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from sdjax.storage.errors import naming
from sdjax.storage.interruption import guarded
from sdjax.storage.local import ABANDONED_SECONDS
from sdjax.storage.store import TEMPORARY, Store, StoredFile


class RemoteStore(Store):
    """A prefix of a remote store; the clients of these raise exceptions of any type."""

    remote: ClassVar[bool] = True
    errors: ClassVar[type[Exception]] = Exception

    def path(self, name: str) -> str:
        """The URL itself for no name."""
        if not name:
            return self.url
        return self.url + name if self.url.endswith("://") else f"{self.url.rstrip('/')}/{name}"

    def open(self, name: str) -> io.BufferedIOBase:
        """Streams from the store."""
        from apache_beam.io.filesystem import CompressionTypes

        with self._naming(name):
            stream: Any = _filesystems().open(self.path(name), compression_type=CompressionTypes.UNCOMPRESSED)
            return stream  # a `BufferedReader`, whatever Beam's annotation says

    def put(self, name: str, data: bytes) -> None:
        """One whole object. If it fails, whatever there may be of it is taken away, for it may be a part."""
        with self._naming(name):
            renamed = _filesystems().get_filesystem(self.path(name)).has_dirs()
        if renamed:
            with self.replacing(name) as stream, self._naming(name):
                stream.write(data)
            return
        with self._naming(name):
            try:
                with _created(self.path(name)) as stream:
                    stream.write(data)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._delete(name)
                raise

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[io.BufferedIOBase]:
        """A stream to a temporary name, which is renamed when all went well and else is deleted."""
        temporary = posixpath.join(posixpath.dirname(name), TEMPORARY + uuid.uuid4().hex)

        def create() -> io.BufferedIOBase:
            with self._naming(name):
                return _created(self.path(temporary))

        with guarded(create, lambda _: self._delete(temporary), remote=True) as stream:
            try:
                yield stream
                with self._naming(name):
                    stream.close()
                    self._rename(temporary, name)
            except BaseException:
                with contextlib.suppress(Exception):
                    stream.close()
                with contextlib.suppress(Exception):
                    self._delete(temporary)
                raise

    def _rename(self, source: str, target: str) -> None:
        paths = [self.path(source)], [self.path(target)]
        try:
            _filesystems().rename(*paths)
        except OSError:
            # HDFS does not rename over a file. Killed here, a rerun makes it again.
            if not self.exists(target):
                raise
            self._delete(target)
            _filesystems().rename(*paths)

    def exists(self, name: str) -> bool:
        """Asks for the one name."""
        with self._naming(name):
            return bool(_filesystems().exists(self.path(name)))

    def list(self, prefix: str = "", folders: re.Pattern[str] | None = None) -> Iterator[StoredFile]:
        """One listing of all that begins so, whatever `folders` says."""
        root, top = self.path("").rstrip("/") + "/", posixpath.dirname(prefix)
        with naming((root + prefix).rstrip("/"), Exception):
            [found] = _filesystems().match([_as_pattern(root + prefix) + "**"])
            for file in found.metadata_list:
                name = file.path.removeprefix(root)
                if folders is None or _is_right_below(name.removeprefix(f"{top}/"), folders):
                    yield StoredFile(name, file.size_in_bytes, file.last_updated_in_seconds or time.time())

    def is_link(self, name: str) -> bool:
        """Never: there are none."""
        return False

    def exclusive(self, note: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        """Nothing keeps another run out."""
        return contextlib.nullcontext()

    def remove_leftovers(self, folders: Mapping[str, re.Pattern[str]]) -> tuple[str, ...]:
        """By one listing of everything."""
        temporary = [file for file in self.list() if posixpath.basename(file.name).startswith(TEMPORARY)]
        abandoned = [file for file in temporary if time.time() - file.modified > ABANDONED_SECONDS]
        return tuple(file.name for file in abandoned if self._is_deleted(file.name))

    def _is_deleted(self, name: str) -> bool:
        try:
            self._delete(name)
        except OSError:
            return False
        return True

    def _delete(self, name: str) -> None:
        _filesystems().delete([_as_pattern(self.path(name))])


def _is_right_below(name: str, folders: re.Pattern[str]) -> bool:
    """Whether a file is right below a folder, or one deep in one of these within it."""
    folder, slash, rest = name.partition("/")
    return not slash or ("/" not in rest and folders.fullmatch(folder) is not None)


def _filesystems() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _created(path: str) -> Any:
    from apache_beam.io.filesystem import CompressionTypes

    return _filesystems().create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _as_pattern(path: str) -> str:
    """A pattern of Beam's that only this path matches."""
    # The backslash, in no path of ours, keeps `re` from warning of a set that begins with a bracket.
    return re.sub(r"[*?[]", lambda mark: r"[\[]" if mark[0] == "[" else f"[{mark[0]}]", path)
