"""What an output holds beside its images and rows, whatever its sink: rejects, a summary, temporary files."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sdjax.extensions import Extension
from sdjax.storage import TEMPORARY, StorageError, Store

REJECTS, SUMMARY, BATCH_SIZE = "rejects.jsonl", "summary.json", "batch_size.json"
# A summary is a few thousand bytes, and what a file of prompts adds to it is bounded by a command line.
_MAX_SUMMARY_BYTES = 1 << 24
_MAX_BATCH_SIZE = 1 << 16


def temporary_name(run: str, part: str) -> str:
    """The name of a file that is needed until a run ends, of the run of this name; those of killed runs are deleted."""
    return f"{TEMPORARY}{run}-{part}"


def check_writable(store: Store, run: str) -> None:
    """Writes a file and deletes it: a full or read-only output is found now, not after the first hour."""
    store.put(temporary_name(run, "probe"), b"\n")
    store.delete(temporary_name(run, "probe"))


def write_rejects(store: Store, rejects: Iterable[Mapping[str, Any]]) -> None:
    """Writes `rejects.jsonl` in the order of the prompt files; an earlier run's goes if there are none."""
    rows = sorted(rejects, key=lambda reject: (reject["source"], reject["line"], reject["text"]))
    if rows:
        store.write_jsonl(REJECTS, rows)
    else:
        store.delete(REJECTS, missing_ok=True)


def write_summary(
    store: Store, counts: Mapping[str, int], config: Mapping[str, Any], sink: Extension | None = None
) -> None:
    """Writes `summary.json`: what became of everything, how the run was configured, and whose sink wrote it."""
    added = {"sink": str(sink)} if sink else {}
    text = json.dumps({"counts": dict(counts), "config": dict(config), **added}, indent=2, sort_keys=True)
    store.put(SUMMARY, text.encode() + b"\n")


def write_batch_size(store: Store, batch_size: int) -> None:
    """Writes `batch_size.json`: what was found out for an output counts for all runs that continue it."""
    store.put(BATCH_SIZE, json.dumps({"batch_size": batch_size}).encode() + b"\n")


def read_batch_size(store: Store) -> int | None:
    """The batch size that was found out for an output; None if none was.

    Raises:
      StorageError: for a file that holds something else than `generate` writes.
    """
    if not store.exists(BATCH_SIZE):
        return None
    try:
        batch_size = json.loads(store.get(BATCH_SIZE, _MAX_SUMMARY_BYTES))["batch_size"]
        if type(batch_size) is not int or not 1 <= batch_size <= _MAX_BATCH_SIZE:
            raise ValueError(f"batch_size = {batch_size!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(
            f"{store.path(BATCH_SIZE)} is not what generate writes ({error!r}): delete it to have the batch size found "
            "out again, or set engine.batch_size"
        ) from error
    return batch_size


def read_config(store: Store) -> Mapping[str, Any]:
    """How the last run into an output was configured, as its summary says; whoever wrote it, it is an object.

    Raises:
      StorageError: if there is no summary, or none that `generate` writes.
    """
    data = store.get(SUMMARY, _MAX_SUMMARY_BYTES + 1)
    try:
        if len(data) > _MAX_SUMMARY_BYTES:
            raise ValueError(f"more than {_MAX_SUMMARY_BYTES} bytes")
        config = json.loads(data)["config"]
        if not isinstance(config, dict):
            raise TypeError(f"config is a {type(config).__name__}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise summary_error(store, error) from error
    return config


def summary_error(store: Store, error: Exception) -> StorageError:
    """The error for a summary that holds something else than `generate` writes."""
    return StorageError(f"{store.path(SUMMARY)} is not what generate writes ({error!r}): run it again")
