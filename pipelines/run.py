"""What every worker of a run has to know."""

from typing import NamedTuple

from pipelines.config import RunConfig
from pipelines.config.sections import finds_batch_size, replaced
from pipelines.sinks import open_sink
from pipelines.sinks.sink import Sink
from sdjax.engine.fingerprint import EngineIdentity

# Where there are several workers: so many that all end at about the same time.
_SHARDS_PER_WORKER = 4


class Run(NamedTuple):
    """What every worker of a run has to know.

    progress: a folder of the machine that started the run.
    name: of this run, unlike any other's; seeds that are to be drawn at random are drawn from it.
    workers: processes with an engine each, as far as that is known.
    identity: of the engines of all workers, with which jobs are planned; None until it has been read.
    """

    config: RunConfig
    out: str
    progress: str
    name: str
    workers: int
    identity: EngineIdentity | None = None

    @property
    def shards(self) -> int:
        """Into how many parts the sampling of images that can share batches is cut, if there are enough of them."""
        return self.config.run.shards or (1 if self.workers == 1 else self.workers * _SHARDS_PER_WORKER)

    def with_batch_size(self, batch_size: int) -> "Run":
        """The same with batches of this size."""
        return self._replace(config=replaced(self.config, {"engine.batch_size": batch_size}))

    def with_identity(self, identity: EngineIdentity) -> "Run":
        """The same with the identity of its engines, and their batch size where that was to be found out."""
        run = self._replace(identity=identity)
        if not finds_batch_size(self.config):
            return run
        return run.with_batch_size(int(dict(identity.fingerprint)["batch_size"]))


def sink_of(run: Run) -> Sink:
    """Where the images of a run go."""
    return open_sink(run.out, run.config.output.format, run.config.output.animation, run.config.output.sink)
