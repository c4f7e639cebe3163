"""Files by their whole paths, local ones and those with a scheme alike; errors are those of stores."""

import io
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sdjax.storage.local import LocalStore
from sdjax.storage.remote import RemoteStore
from sdjax.storage.store import Store

_SCHEME = re.compile(r"\s*[A-Za-z][-A-Za-z0-9+.]*://")


def is_remote(path: str) -> bool:
    """Whether a path has a scheme."""
    return _SCHEME.match(path) is not None


def open_store(url: str) -> Store:
    """The store of a folder or prefix, which need not be there yet."""
    return RemoteStore(url) if is_remote(url) else LocalStore(url)


def store_for(path: str) -> tuple[Store, str]:
    """A store that has a file, and the file's name in it."""
    if not is_remote(path):
        return LocalStore(""), path
    scheme, separator, rest = path.partition("://")
    folder, name = posixpath.split(rest)
    return RemoteStore(f"{scheme}{separator}{folder}"), name


def join(folder: str, *names: str) -> str:
    """A path below a folder."""
    return open_store(folder).path(posixpath.join(*names))


def beside(path: str, name: str) -> str:
    """A path that is given relative to the folder of a file, whole; one that is whole already stays as it is."""
    if is_remote(name) or os.path.isabs(name):
        return name
    store, file = store_for(path)
    return store.path(name) if store.remote else os.path.abspath(os.path.join(os.path.dirname(file), name))


def open_binary(path: str) -> io.BufferedIOBase:
    """Opens a file for reading its bytes as they are: gzip is not undone."""
    store, name = store_for(path)
    return store.open(name)


def read_whole(path: str, limit: int = -1) -> bytes:
    """The bytes of a file, the first so many of them if there is a limit."""
    store, name = store_for(path)
    return store.get(name, limit)


def write_whole(path: str, data: bytes) -> None:
    """Writes a file that is there whole or not at all; see `Store.put`."""
    store, name = store_for(path)
    store.put(name, data)


def read_jsonl(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line; see `Store.read_jsonl`."""
    store, name = store_for(path)
    return store.read_jsonl(name)


def write_jsonl(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes an object a line; see `Store.write_jsonl`."""
    store, name = store_for(path)
    store.write_jsonl(name, rows)


def exists(path: str) -> bool:
    """Whether there is a file."""
    store, name = store_for(path)
    return store.exists(name)


def delete(path: str, missing_ok: bool = False) -> None:
    """Deletes a file; a `StorageError` if there is none, unless that may be."""
    store, name = store_for(path)
    store.delete(name, missing_ok)


def list_files(folder: str) -> Iterator[str]:
    """The paths of all files below a folder, but for a disk's `lost+found`; none if it isn't there."""
    store = open_store(folder)
    return (store.path(file.name) for file in store.list())
