"""A folder of a local disk.

A file is written under a temporary name beside the final one, flushed to the disk, then renamed. Temporary files begin
with `TEMPORARY`. A killed process leaves them behind, and a process beside this one may be writing one just now. A
writer therefore holds a lock (`flock`) on its file, which the kernel drops when the process dies: `remove_leftovers`
deletes what it can lock, and so nothing that anyone still writes, on whatever machine or in whatever container. Where
there are no locks it deletes what nobody has touched for a day.

A run holds a lock on a file of its output, `LOCK`, from beginning to end: not on the folder, which many a network's
disk can't lock. Files with temporary names which wait for the run's end are safe by it.
"""

import contextlib
import io
import os
import posixpath
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

from sdjax.storage import locks
from sdjax.storage.errors import StorageError, naming
from sdjax.storage.interruption import guarded
from sdjax.storage.store import LOCK, TEMPORARY, Store, StoredFile

# After this long without a change a file that can't be locked is nobody's any more. Writing one takes seconds.
ABANDONED_SECONDS = 24 * 3600
# Where a disk keeps what was found after a crash; only root may look into it.
_LOST = "lost+found"


class LocalStore(Store):
    """A folder of a local disk; without one (`""`), names are paths as the system has them."""

    remote: ClassVar[bool] = False
    errors: ClassVar[type[Exception]] = OSError

    def path(self, name: str) -> str:
        """The folder's path for no name."""
        return os.path.join(self.url, name) if name else self.url

    def open(self, name: str) -> io.BufferedIOBase:
        """A file, and nothing that would be waited for: a pipe, a device."""
        path = self.path(name)
        with naming(path):
            opened = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                opened.close()
                raise StorageError(f"{path} is a pipe or a device; expected a file")
            return opened

    def put(self, name: str, data: bytes) -> None:
        """As `replacing`."""
        with self.replacing(name) as stream, self._naming(name):
            stream.write(data)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[io.BufferedIOBase]:
        """A stream to a temporary file, which takes the name when all went well and else is deleted."""
        path = self.path(name)
        with naming(path):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with guarded(lambda: _new_locked(path), lambda made: os.unlink(made[0])) as (temporary, stream):
            try:
                yield stream
                with naming(path):
                    stream.flush()
                    # Else a loss of power can leave an empty file under the final name. That the name itself gets to
                    # the disk is not waited for: without it the image is made once more.
                    os.fsync(stream.fileno())
                    os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            finally:
                # What did not fit is in the buffer still, and closing tries it again.
                with contextlib.suppress(OSError):
                    stream.close()

    def exists(self, name: str) -> bool:
        """Also for a folder."""
        return os.path.exists(self.path(name))

    def list(self, prefix: str = "", folders: re.Pattern[str] | None = None) -> Iterator[StoredFile]:
        """Folders that can't be listed are errors; links to folders are not followed."""
        top, beginning = posixpath.split(prefix)
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            with self._naming(folder):
                for name, entry in self._entries(folder):
                    if folder == top and not entry.name.startswith(beginning):
                        continue
                    if not entry.is_dir(follow_symlinks=False):
                        yield from _regular(name, entry, links=folders is None)
                    elif entry.name != _LOST if folders is None else folder == top and folders.fullmatch(entry.name):
                        waiting.append(name)

    def _entries(self, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """What is right below a folder, by name; nothing if there is none."""
        path = self.path(folder)
        if os.path.exists(path):
            with os.scandir(path) as entries:
                for entry in entries:
                    yield posixpath.join(folder, entry.name), entry

    def is_link(self, name: str) -> bool:
        """Links above the file's own folder are the user's to make."""
        path = self.path(name)
        return os.path.islink(path) or os.path.islink(os.path.dirname(path))

    @contextlib.contextmanager
    def exclusive(self, note: Callable[[str], None]) -> Iterator[None]:
        """By a lock on a file; on a disk without locks it is noted that a second run would not be noticed."""
        with naming(self.url):
            os.makedirs(self.url, exist_ok=True)
        with guarded(lambda: _acquired(self.path(LOCK)), locks.release) as lock_file:
            if lock_file is None:
                raise StorageError(
                    f"{self.url}: another run is writing there, which holds {LOCK}: "
                    "wait for its end or choose another output"
                )
            if not lock_file.locked:
                note(
                    f"{self.url} is on a disk without locks: a second run there would not be noticed, and the manifest "
                    "would be that of the last to end; start one at a time"
                )
            try:
                yield
            finally:
                locks.release(lock_file)

    def remove_leftovers(self, folders: Mapping[str, re.Pattern[str]]) -> tuple[str, ...]:
        """Folders of others are not looked into."""
        files = [file for prefix, within in folders.items() for file in self.list(prefix, within)]
        temporary = [file for file in files if posixpath.basename(file.name).startswith(TEMPORARY)]
        return tuple(file.name for file in temporary if _removed_if_unlocked(self.path(file.name), file))

    def _delete(self, name: str) -> None:
        os.unlink(self.path(name))


def _regular(name: str, entry: os.DirEntry[str], links: bool) -> Iterator[StoredFile]:
    """A regular file, or a link; nothing for pipes, devices, and what another run has renamed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode) or (links and stat.S_ISLNK(status.st_mode)):
            yield StoredFile(name, status.st_size, status.st_mtime)


def _acquired(path: str) -> locks.LockFile | None:
    with naming(path):
        return locks.acquire(path)


def _new_locked(target: str) -> tuple[str, io.BufferedIOBase]:
    with naming(target):
        return locks.new_file(os.path.dirname(target), TEMPORARY)


def _removed_if_unlocked(path: str, file: StoredFile) -> bool:
    """Deletes a temporary file that nobody writes; gives whether it did."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # renamed meanwhile, or not ours to touch
        return False
    try:
        locked = locks.try_lock(descriptor)
        abandoned = time.time() - file.modified > ABANDONED_SECONDS if locked is None else locked
        # Deleted with the lock held, so that its writer can tell.
        return abandoned and _removed(path)
    finally:
        os.close(descriptor)


def _removed(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True
