"""What goes wrong with a path, as an error that names the path and says what to do."""

import contextlib
import errno
from collections.abc import Iterator

_NO_ROOM = "there is no room left: free some, then run the same command again. Nothing is lost"
_NOT_ALLOWED = "writing is not allowed there: change the permissions or choose another output"
_IN_THE_WAY = "a file is where a folder should be, or a folder where a file: choose another output"
_ADVICE = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: _NO_ROOM,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOENT: "there is no such file: check the path",
}
_OTHER_ADVICE = "check the path and the access to it"


class StorageError(OSError):
    """A file can't be written or read; the message names its path and says what to do."""


@contextlib.contextmanager
def naming(path: str, errors: type[Exception] = OSError) -> Iterator[None]:
    """A context that turns errors of this type into a `StorageError` that names the path."""
    try:
        yield
    except StorageError:
        raise
    except errors as error:
        number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
        raise StorageError(f"{path}: {reason or error}: {_ADVICE.get(number or 0, _OTHER_ADVICE)}") from error
