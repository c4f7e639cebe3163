"""Where images and their rows go: one module for each kind of output, all behind the contract in `sink.py`."""

from collections.abc import Callable, Mapping

from pipelines.sinks.files import FilesSink
from pipelines.sinks.sink import Sink

# By the name of the kind: from an output's URL, the format of images and the kind of animations to a sink.
SINKS: Mapping[str, Callable[[str, str, str], Sink]] = {"files": FilesSink}


def open_sink(url: str, image_format: str = "png", animation: str = "webp", kind: str = "files") -> Sink:
    """The sink of an output.

    Args:
      url: of the output.
      image_format: of what is written, a key of `FORMATS`; what is read says it itself.
      animation: of kept steps, one of `ANIMATIONS`, likewise.
      kind: a key of `SINKS`.
    """
    return SINKS[kind](url, image_format, animation)
