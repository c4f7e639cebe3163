"""Where images and their rows go: one module for each kind of output, all behind the contract in `sink.py`."""

from collections.abc import Mapping
from typing import Any

from pipelines.sinks.files import FilesSink
from pipelines.sinks.output import SUMMARY, read_config
from pipelines.sinks.sink import Sink
from sdjax import extensions
from sdjax.extensions import Extension
from sdjax.messages import quoted
from sdjax.storage import StorageError, open_store

FILES = "files"
# By the name of the kind: classes that are made from an output's URL, the format of images and that of animations.
SINKS: Mapping[str, type[Any]] = {FILES: FilesSink}


def open_sink(url: str, image_format: str = "png", animation: str = "webp", kind: str = FILES) -> Sink:
    """The sink of an output.

    Args:
      url: of the output.
      image_format: of what is written, a key of `FORMATS`; what is read says it itself.
      animation: of previews, one of `ANIMATIONS`, likewise.
      kind: a key of `SINKS`, or of one that another package adds.

    Raises:
      KeyError: if there is no such kind.
      ExtensionError: if it is another package's and can't be used.
    """
    sink: Sink = extensions.row_named(kind, SINKS, extensions.SINKS, type)(url, image_format, animation)
    return sink


def open_output(url: str) -> Sink:
    """The sink of an output as its last run wrote it: of the kind that its summary says; of files if it has none.

    Raises:
      StorageError: if the summary is not what a run writes, or names a kind that is not installed.
    """
    kind = recorded_kind(url) or FILES
    known = (*SINKS, *extensions.names(extensions.SINKS))
    if kind not in known:
        raise StorageError(f"{url} was written by the sink {quoted(kind)}; installed are {', '.join(known)}")
    return open_sink(url, kind=kind)


def recorded_kind(url: str) -> str | None:
    """The kind of sink that wrote an output, as its summary says; None without one.

    Raises:
      StorageError: if the summary is not what a run writes.
    """
    store = open_store(url)
    if not store.exists(SUMMARY):
        return None
    output = read_config(store).get("output")
    return str(output.get("sink", FILES)) if isinstance(output, dict) else FILES


def extension_of(kind: str) -> Extension | None:
    """The package that adds a kind of sink; None for one of `SINKS`."""
    return extensions.added_by(kind, SINKS, extensions.SINKS)
