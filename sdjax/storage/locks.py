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


class Held(NamedTuple):
    """An open file that says whose something is; `locked` is false on a disk without locks."""

    path: str
    descriptor: int
    locked: bool


def lock(descriptor: int) -> bool | None:
    """Locks an open file: True if it could, False if another has it, None on a disk without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def hold(path: str) -> Held | None:
    """Makes a file and locks it; None if another process has locked it. Raises `OSError` if it can't be made."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        held = Held(path, descriptor, bool(locked := lock(descriptor)))
        if locked is None or (locked and _is_named(held)):
            return held
        os.close(descriptor)
        if locked is False:
            return None
        # It was that of a process which has just let it go.


def let_go(held: Held | None) -> None:
    """Removes the file while it is locked: who has opened it meanwhile can tell by its name that it is no more."""
    if held is None:
        return
    with contextlib.suppress(OSError):
        if _is_named(held):
            os.unlink(held.path)
    with contextlib.suppress(OSError):
        os.close(held.descriptor)


def _is_named(held: Held) -> bool:
    """Whether an open file still has its name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(held.path, follow_symlinks=False), os.fstat(held.descriptor))
    return False


def new_file(folder: str, prefix: str) -> tuple[str, io.BufferedIOBase]:
    """A new file in a folder, its path and a stream to it, locked until that is closed (where the disk has locks)."""
    while True:
        path = os.path.join(folder, prefix + uuid.uuid4().hex)
        stream = os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb")
        if lock(stream.fileno()) is not False and os.fstat(stream.fileno()).st_nlink:
            return path, stream
        # Another process came between the making and the locking, and takes it for a leftover.
        stream.close()
        with contextlib.suppress(OSError):
            os.unlink(path)
