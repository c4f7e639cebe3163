"""Files that are there whole or not at all, on local disks and on remote stores.

A path without a scheme is local; any other (`gs://`, `s3://`, `hdfs://`) is remote. `open_store` gives the store of a
folder or prefix; the functions over whole paths do the same for single files.
"""

from sdjax.storage.errors import StorageError
from sdjax.storage.interruption import use_interruption_guard
from sdjax.storage.jsonl import MAX_LINE_BYTES
from sdjax.storage.local import ABANDONED_SECONDS, LocalStore
from sdjax.storage.paths import (
    beside,
    delete,
    exists,
    join,
    list_files,
    open_binary,
    open_store,
    read_jsonl,
    read_whole,
    store_for,
    write_jsonl,
    write_whole,
)
from sdjax.storage.remote import RemoteStore
from sdjax.storage.store import LOCK, NO_FOLDERS, TEMPORARY, Store, StoredFile

__all__ = [
    "ABANDONED_SECONDS",
    "LOCK",
    "MAX_LINE_BYTES",
    "NO_FOLDERS",
    "TEMPORARY",
    "LocalStore",
    "RemoteStore",
    "StorageError",
    "Store",
    "StoredFile",
    "beside",
    "delete",
    "exists",
    "join",
    "list_files",
    "open_binary",
    "open_store",
    "read_jsonl",
    "read_whole",
    "store_for",
    "use_interruption_guard",
    "write_jsonl",
    "write_whole",
]
