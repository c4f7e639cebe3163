"""Locks on local files (`flock`): the kernel drops one when its process dies, whatever machine or container that is in.

Disks differ: on a network's disk folders often can't be locked, and files can; some disks have no locks at all.
"""

import contextlib
import errno
import fcntl
import io
import os
import uuid
from typing import NamedTuple


class LockFile(NamedTuple):
    """An open file that says whose something is; `locked` is false on a disk without locks."""

    path: str
    descriptor: int
    locked: bool


def try_lock(descriptor: int) -> bool | None:
    """Locks an open file: True if it could, False if another has it, None on a disk without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def acquire(path: str) -> LockFile | None:
    """Makes a file and locks it; None if another process has locked it. Raises `OSError` if it can't be made."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        lock_file = LockFile(path, descriptor, bool(locked := try_lock(descriptor)))
        if locked is None or (locked and _is_named(lock_file)):
            return lock_file
        os.close(descriptor)
        if locked is False:
            return None
        # It was that of a process which has just let it go.


def release(lock_file: LockFile | None) -> None:
    """Removes the file while it is locked: who has opened it meanwhile can tell by its name that it is no more."""
    if lock_file is None:
        return
    with contextlib.suppress(OSError):
        if _is_named(lock_file):
            os.unlink(lock_file.path)
    with contextlib.suppress(OSError):
        os.close(lock_file.descriptor)


def _is_named(lock_file: LockFile) -> bool:
    """Whether an open file still has its name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(lock_file.path, follow_symlinks=False), os.fstat(lock_file.descriptor))
    return False


def new_file(folder: str, prefix: str) -> tuple[str, io.BufferedIOBase]:
    """A new file in a folder, its path and a stream to it, locked until that is closed (where the disk has locks)."""
    while True:
        path = os.path.join(folder, prefix + uuid.uuid4().hex)
        stream = os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb")
        if try_lock(stream.fileno()) is not False and os.fstat(stream.fileno()).st_nlink:
            return path, stream
        # Another process came between the making and the locking, and takes it for a leftover.
        stream.close()
        with contextlib.suppress(OSError):
            os.unlink(path)
