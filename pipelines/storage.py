"""Files that are there whole or not at all, on local disks and on whatever Beam's filesystems reach.

A path without a scheme is local; any other (`gs://`, `s3://`, `hdfs://`) goes through Beam. There are three
ways to write, and in each the file's own name never holds less than the whole:

- a local disk: a temporary file beside the target, flushed to the disk, then renamed over it;
- an object store: one put of the whole object, which is atomic there (renaming is copying);
- other remote folders (HDFS), and long streams to an object store: a temporary name, then renamed.

Temporary files begin with `TEMPORARY`. A killed run leaves them behind, and a run beside this one may be
writing one just now. A local writer therefore holds a lock (`flock`) on its file, which the kernel drops when
the process dies: `remove_leftovers` deletes what it can lock, and so nothing that anyone still writes, on
whatever machine or in whatever container. Where there are no locks it deletes what nobody has touched for a
day.

A run holds a lock on a file of its output, `LOCK`, from beginning to end: not on the folder, which many a
network's disk can't lock. Parts of the manifest, which wait for the others when they are written, are safe by it.
"""

import contextlib
import errno
import functools
import io
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipelines import locks, stopping, terminal
from pipelines.stopping import TEMPORARY
from sdjax.images import encode

# What a run holds of its output; with a dot, so that readers of data sets pass over it.
LOCK = ".sdjax-lock"
IMAGES, STEPS = "images", "steps"
# After this long without a change a file that can't be locked is nobody's any more. Writing one takes
# seconds.
ABANDONED_SECONDS = 24 * 3600
# Of an image's file, whoever made it: the largest image without compression, and its metadata.
MAX_IMAGE_BYTES = 1 << 28
# Of a line of JSON that is read: several times what a run writes for two prompts of the greatest length, all escaped.
MAX_LINE_BYTES = 16 * 2**20

# Endings of images, for patterns.
EXTENSIONS = "|".join(known.extension for known in encode.FORMATS.values())
_IMAGE_NAME = re.compile(rf"([0-9a-f]{{32}})\.({EXTENSIONS})")
_STEPS_NAME = re.compile(r"([0-9a-f]{32})\.(png|webp|gif)")
_IMAGE_FOLDER = re.compile(r"[0-9a-f]{2}")
# In JSON, too, as escapes: who looks at a file in a terminal sends it there.
_TURNING = re.compile(f"[{terminal.TURNING}]")
# Where a disk keeps what was found after a crash; only root may look into it.
_LOST = "lost+found"

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


class StorageError(OSError):
    """A file can't be written or read; the message names its path and says what to do."""


class Done(NamedTuple):
    """A picture that is there, or its previews: its id, its path and its size in bytes."""

    id: str
    path: str
    size: int


def join(folder: str, *names: str) -> str:
    """A path below a folder."""
    return os.path.join(folder, *names) if _is_local(folder) else str(FileSystems.join(folder, *names))


def beside(path: str, name: str) -> str:
    """A path that is given relative to the folder of a file, whole; one that is whole already stays as it is."""
    if not _is_local(name) or os.path.isabs(name):
        return name
    if _is_local(path):
        return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), name))
    return join(FileSystems.split(path)[0], name)


def image_path(out: str, image_id: str, extension: str) -> str:
    """Where a picture belongs: `images/ab/<id>.png`, so that no folder gets more than a 256th of them."""
    return join(out, IMAGES, image_id[:2], f"{image_id}.{extension}")


def steps_path(out: str, image_id: str, extension: str) -> str:
    """Where the previews of a picture belong: `steps/ab/<id>.png`."""
    return join(out, STEPS, image_id[:2], f"{image_id}.{extension}")


def open_binary(path: str) -> io.BufferedIOBase:
    """Opens a file for reading its bytes as they are: gzip is not undone.

    Raises:
      StorageError: if it can't be opened.
    """
    with _clear_errors(path):
        if _is_local(path):
            return _opened_locally(path)
        stream: Any = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        return stream  # a `BufferedReader`, whatever Beam's annotation says


def _opened_locally(path: str) -> io.BufferedIOBase:
    """A file, and nothing that would be waited for: a pipe, a device."""
    opened = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise StorageError(f"{path} is a pipe or a device; expected a file")
    return opened


def read_limited(path: str) -> bytes:
    """The bytes of an image's file; raises `StorageError`, also for more bytes than any image takes."""
    data = read_whole(path, MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise StorageError(f"{path} has more than {MAX_IMAGE_BYTES} bytes, which no image takes")
    return data


def read_whole(path: str, limit: int = -1) -> bytes:
    """The bytes of a file, the first so many of them if there is a limit; raises `StorageError`."""
    with open_binary(path) as stream, _clear_errors(path):
        return stream.read(limit)


def write_whole(path: str, data: bytes) -> None:
    """Writes a file that is there whole or not at all; one that is there already is replaced.

    Folders are made. If it fails, no temporary file stays behind.

    Raises:
      StorageError: if there is no room, no permission, or something in the way.
    """
    if _is_local(path) or _has_folders(path):
        with _replacing(path) as stream, _clear_errors(path):
            stream.write(data)
    else:
        _put(path, data)


def write_jsonl(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes an object a line, streaming; the file is there whole or not at all.

    Raises:
      StorageError: as `write_whole`.
      ValueError: for NaN or infinity. What `rows` raises goes through, and nothing is written.
    """
    with _replacing(path) as stream:
        for row in rows:
            text = _TURNING.sub(_escape, json.dumps(dict(row), ensure_ascii=False, allow_nan=False))
            with _clear_errors(path):
                # Half of a surrogate pair is no UTF-8; with a backslash it is JSON's own escape.
                stream.write(text.encode("utf-8", "backslashreplace") + b"\n")


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def read_jsonl(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line, streaming.

    Raises:
      StorageError: if the file can't be read; names the line that is no whole object.
    """
    with open_binary(path) as stream, _clear_errors(path):
        for number, line in enumerate(iter(functools.partial(stream.readline, MAX_LINE_BYTES), b""), 1):
            if len(line) == MAX_LINE_BYTES:
                raise StorageError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes; no run writes such")
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise StorageError(f"{path}, line {number}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise StorageError(f"{path}, line {number}: a {type(row).__name__}; expected an object")
            yield row


def list_done(out: str) -> Iterator[Done]:
    """The pictures below an output, found by one listing; other files and folders are passed over.

    Raises:
      StorageError: if a folder of pictures can't be listed.
    """
    return _files_of_images(join(out, IMAGES), _IMAGE_NAME)


def list_steps(out: str) -> Iterator[Done]:
    """The previews of pictures below an output, strips and animations, likewise."""
    return _files_of_images(join(out, STEPS), _STEPS_NAME)


def _files_of_images(folder: str, named: re.Pattern[str]) -> Iterator[Done]:
    for path, size, _ in _listed_by_id(folder):
        found = named.fullmatch(os.path.basename(path))
        if found and os.path.basename(os.path.dirname(path)) == found[1][:2]:
            yield Done(found[1], path, size)


def list_files(folder: str) -> Iterator[str]:
    """The paths of all files below a folder, but for a disk's `lost+found`; none if it isn't there."""
    return (path for path, _, _ in _listed(folder))


def read_image(out: str, file_name: str) -> bytes:
    """The bytes of an image of an output, by its path from there.

    Raises:
      StorageError: if it can't be read, or is a link, which may lead anywhere.
    """
    path = join(out, *file_name.split("/"))
    if _is_local(out) and (os.path.islink(path) or os.path.islink(os.path.dirname(path))):
        raise StorageError(f"{path} is a link: an output's images are files of its own; put the file there")
    return read_limited(path)


@contextlib.contextmanager
def only_run(out: str) -> Iterator[None]:
    """Holds an output for one run, where it is on a local disk: two would overwrite each other's manifest.

    On a disk without locks that can't be, which is said. There, too, no run deletes what another is writing.

    Raises:
      StorageError: if another run is at work there, or the folder or the lock can't be made.
    """
    if not _is_local(out):
        yield
        return
    with _clear_errors(out):
        os.makedirs(out, exist_ok=True)
    with stopping.undoing(lambda: _held(join(out, LOCK)), locks.let_go) as held:
        if held is None:
            raise StorageError(
                f"{out}: another run is writing there, which holds {LOCK}: wait for its end or choose another output"
            )
        if not held.locked:
            terminal.note(
                f"{out} is on a disk without locks: a second run there would not be noticed, and the manifest would be "
                "that of the last to end; start one at a time"
            )
        try:
            yield
        finally:
            locks.let_go(held)


@contextlib.contextmanager
def removing_temporaries(out: str, name: str) -> Iterator[None]:
    """Deletes the temporary files right below an output whose names go on with `name` at its end, however that comes.

    What can't be deleted then stays for the next run.
    """

    def remove(_: object) -> None:
        with contextlib.suppress(StorageError):
            _delete_temporaries(out, name)

    with stopping.undoing(lambda: None, remove, far=not _is_local(out)):
        try:
            yield
        finally:
            remove(None)


def remove_leftovers(out: str) -> list[str]:
    """Deletes the temporary files of killed runs in an output, and tells which; folders of others are not looked into.

    Safe beside runs that go on: see the top of this module.

    Raises:
      StorageError: if a folder of ours can't be listed.
    """
    if not _is_local(out):
        listed = [(path, changed) for path, _, changed in _listed(out)]
        remove = _remove_if_abandoned
    else:
        folders = (_files_of(out), *(_listed_by_id(join(out, kind)) for kind in (IMAGES, STEPS)))
        listed = [(path, changed) for found in folders for path, _, changed in found]
        remove = _remove_if_unlocked
    return [path for path, changed in listed if os.path.basename(path).startswith(TEMPORARY) and remove(path, changed)]


def _delete_temporaries(out: str, name: str) -> None:
    prefix = TEMPORARY + name
    if _is_local(out):
        with _clear_errors(out):
            found = [entry.path for entry in os.scandir(out) if entry.name.startswith(prefix)]
    else:
        with _clear_errors(out):
            [matched] = FileSystems.match([_as_pattern(join(out, prefix)) + "*"])
            found = [metadata.path for metadata in matched.metadata_list]
    for path in found:
        delete(path, missing_ok=True)


# --- What local disks and Beam's filesystems do differently ---


def _is_local(path: str) -> bool:
    return FileSystems.get_scheme(path) is None


def _has_folders(path: str) -> bool:
    """Whether a remote path is in folders that can be renamed in, rather than in an object store."""
    with _clear_errors(path):
        return bool(FileSystems.get_filesystem(path).has_dirs())


def _as_pattern(path: str) -> str:
    """A pattern of Beam's that only this path matches."""
    # The backslash, in no path of ours, keeps `re` from warning of a set that begins with a bracket.
    return re.sub(r"[*?[]", lambda mark: r"[\[]" if mark[0] == "[" else f"[{mark[0]}]", path)


def exists(path: str) -> bool:
    """Whether there is a file; raises `StorageError` if that can't be told."""
    with _clear_errors(path):
        return os.path.exists(path) if _is_local(path) else FileSystems.exists(path)


def delete(path: str, missing_ok: bool = False) -> None:
    """Deletes a file.

    Raises:
      StorageError: if it can't be deleted, or is not there while `missing_ok` is false.
    """
    if not missing_ok or exists(path):
        with _clear_errors(path):
            _delete(path)


def _delete(path: str) -> None:
    if _is_local(path):
        os.unlink(path)
    else:
        FileSystems.delete([_as_pattern(path)])


_Listed = tuple[str, int, float]


def _listed(folder: str) -> Iterator[_Listed]:
    """Path, size and time of last change of each file at any depth; nothing if the folder is not there."""
    if not _is_local(folder):
        with _clear_errors(folder):
            [found] = FileSystems.match([join(_as_pattern(folder), "**")])
            for file in found.metadata_list:
                yield file.path, file.size_in_bytes, file.last_updated_in_seconds or time.time()
        return
    folders = [folder]
    while folders:
        inside: list[str] = []
        yield from _files_of(folders.pop(), inside)
        folders += [path for path in inside if os.path.basename(path) != _LOST]


def _listed_by_id(folder: str) -> Iterator[_Listed]:
    """The same of the files right below a folder, and in those within it that are named by the digits of ids."""
    if not _is_local(folder):
        yield from _listed(folder)
        return
    inside: list[str] = []
    yield from _files_of(folder, inside)
    for path in inside:
        if _IMAGE_FOLDER.fullmatch(os.path.basename(path)):
            yield from (file for file in _files_of(path) if not os.path.islink(file[0]))


def _files_of(folder: str, folders: list[str] | None = None) -> Iterator[_Listed]:
    """The same of the files right below a local folder; adds the folders there to `folders`."""
    with _clear_errors(folder):
        if not os.path.exists(folder):
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if folders is not None:
                        folders.append(entry.path)
                    continue
                with contextlib.suppress(FileNotFoundError):  # another run has renamed it meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                        yield entry.path, status.st_size, status.st_mtime


def _put(path: str, data: bytes) -> None:
    """One whole object. If it fails, whatever there may be of it is taken away, for it may be a part."""
    with _clear_errors(path):
        try:
            with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
                stream.write(data)
        except BaseException:
            with contextlib.suppress(Exception):
                _delete(path)
            raise


def _replacing(path: str) -> contextlib.AbstractContextManager[io.BufferedIOBase]:
    """A stream to a temporary file, which takes the name `path` when all went well and else is deleted."""
    return _replacing_locally(path) if _is_local(path) else _replacing_remotely(path)


@contextlib.contextmanager
def _replacing_locally(path: str) -> Iterator[io.BufferedIOBase]:
    folder = os.path.dirname(path)
    with _clear_errors(path):
        os.makedirs(folder or ".", exist_ok=True)
    with stopping.undoing(lambda: _new_locked(path), lambda made: os.unlink(made[0])) as (temporary, stream):
        try:
            yield stream
            with _clear_errors(path):
                stream.flush()
                # Else a loss of power can leave an empty file under the final name. That the name itself gets to
                # the disk is not waited for: without it the picture is made once more.
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


@contextlib.contextmanager
def _replacing_remotely(path: str) -> Iterator[io.BufferedIOBase]:
    with _clear_errors(path):
        temporary = join(FileSystems.split(path)[0], TEMPORARY + uuid.uuid4().hex)
    with stopping.undoing(lambda: _created(path, temporary), lambda _: _delete(temporary), far=True) as stream:
        try:
            yield stream
            with _clear_errors(path):
                stream.close()
                try:
                    FileSystems.rename([temporary], [path])
                except OSError:
                    # HDFS does not rename over a file. Killed here, a rerun makes it again.
                    if not FileSystems.exists(path):
                        raise
                    _delete(path)
                    FileSystems.rename([temporary], [path])
        except BaseException:
            with contextlib.suppress(Exception):
                stream.close()
            with contextlib.suppress(Exception):
                _delete(temporary)
            raise


def _created(path: str, temporary: str) -> Any:
    with _clear_errors(path):
        return FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED)


def _held(path: str) -> locks.Held | None:
    with _clear_errors(path):
        return locks.hold(path)


def _new_locked(target: str) -> tuple[str, io.BufferedIOBase]:
    with _clear_errors(target):
        return locks.new_file(os.path.dirname(target), TEMPORARY)


def _remove_if_unlocked(path: str, changed: float) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # renamed meanwhile, or not ours to touch
        return False
    try:
        locked = locks.lock(descriptor)
        # Deleted with the lock held, so that its writer can tell.
        return _remove_if_abandoned(path, changed) if locked is None else locked and _removed(path)
    finally:
        os.close(descriptor)


def _remove_if_abandoned(path: str, changed: float) -> bool:
    return time.time() - changed > ABANDONED_SECONDS and _removed(path)


def _removed(path: str) -> bool:
    try:
        _delete(path)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _clear_errors(path: str) -> Iterator[None]:
    """Turns what goes wrong with a path into a `StorageError` that names it."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the path and the access to it")
        raise StorageError(f"{path}: {error.strerror or error}: {advice}") from error
    except Exception as error:  # the clients of object stores have exceptions of their own
        if _is_local(path):
            raise
        raise StorageError(f"{path}: {error}: check the path and the access to it") from error
