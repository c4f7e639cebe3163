"""What every worker of a run has to know."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pipelines.config import RunConfig
from pipelines.sinks import open_sink
from pipelines.sinks.sink import Sink
from sdjax.assets import BUNDLED

# Where there are several workers: so many that all end at about the same time.
_SHARDS_PER_WORKER = 4


class Run(NamedTuple):
    """What every worker of a run has to know.

    progress: a folder of the machine that started the run.
    name: of this run, unlike any other's; seeds that are to be drawn at random are drawn from it.
    workers: processes with an engine each, as far as that is known.
    """

    config: RunConfig
    out: str
    progress: str
    name: str
    workers: int

    @property
    def shards(self) -> int:
        """Into how many parts the sampling of images that can share batches is cut, if there are enough of them."""
        return self.config.shards or (1 if self.workers == 1 else self.workers * _SHARDS_PER_WORKER)


def sink_of(run: Run) -> Sink:
    """Where the images of a run go."""
    return open_sink(run.out, run.config.format, run.config.animation)


# Keys of a configuration whose values are paths, or one of these names.
_PATHS: Mapping[str, Iterable[str]] = {
    "model": BUNDLED,
    "model_config": (),
    "vae": (),
    "classifier": BUNDLED,
    "wildcards": (),
    "lora_folder": (),
    "hypernetwork_folder": (),
    "embedding_folder": (),
    "controlnet_folder": BUNDLED,
    "depth_model": BUNDLED,
    "upscaler_folder": (),
}


def with_whole_paths(config: RunConfig) -> RunConfig:
    """The same with paths that workers and `verify` find from any folder; names on a hub and addresses stay."""
    changes: dict[str, Any] = {}
    for key, names in _PATHS.items():
        value = getattr(config, key)
        if value and value not in names and os.path.exists(value):
            changes[key] = os.path.abspath(value)
    return dataclasses.replace(config, **changes)
