"""The graph: prompt files -> rows -> planned jobs -> shards -> images -> manifest.

One direction. Images are written in the step that makes them, and only metadata goes on. The graph is as plain as
possible, so that every runner runs it: element-wise transforms, GroupByKeys, and one terminal step.
"""

import functools
import uuid
from collections.abc import Iterable

import apache_beam as beam

from pipelines import preflight, runners, terminal
from pipelines.config import RunConfig
from pipelines.config.sections import finds_batch_size
from pipelines.elements import OutputPart, PlannedJob, PromptFile
from pipelines.run import Run, sink_of
from pipelines.sinks.output import check_writable, read_batch_size, temporary_name, write_batch_size
from pipelines.sources.prompts import PromptFileError, read_rows
from pipelines.transforms import manifest, steps
from pipelines.transforms.identity import read_identity
from pipelines.transforms.manifest import Counts, WriteManifest
from pipelines.transforms.plan import ReadAndPlan
from pipelines.transforms.resume import Resume
from pipelines.transforms.sample import Sample
from pipelines.transforms.shards import GroupIntoShards
from sdjax import storage
from sdjax.storage import Store

# Elements with which the graph begins, besides files: Dask takes no more workers for a step than it has inputs.
_MOST_PARTS = 64


def build(root: beam.Pipeline, paths: Iterable[str], run: Run) -> None:
    """Adds the whole graph to `root`."""
    parts = (OutputPart(number) for number in range(min(run.workers, _MOST_PARTS)))
    start = root | "Start" >> steps.create([*map(PromptFile, sorted(paths)), *parts])
    plans = start | "Prompts" >> steps.only(PromptFile) | "Plan" >> ReadAndPlan(run)
    output = start | "Output" >> steps.only(OutputPart)
    resumed = (plans, output) | "Resume" >> Resume(run)
    made = resumed | "Todo" >> steps.only(PlannedJob) | "Shards" >> GroupIntoShards(run) | "Sample" >> Sample(run)
    results = (plans, resumed, made) | "Results" >> beam.Flatten()
    _ = results | "Manifest" >> WriteManifest(run)


def _with_engines(run: Run, flags: list[str], store: Store) -> Run:
    """The run with the identity of its engines; a batch size that is found out is kept in the output."""
    if not finds_batch_size(run.config):
        return run.with_identity(read_identity(run, flags))
    if kept := read_batch_size(store):
        run = run.with_batch_size(kept)
    run = run.with_identity(read_identity(run, flags))
    write_batch_size(store, int(run.config.engine.batch_size))
    terminal.note(f"engine.batch_size = {run.config.engine.batch_size}" + (", as before" if kept else ""))
    return run


def run_pipeline(paths: Iterable[str], out: str, config: RunConfig, flags: list[str], progress: str) -> Counts:
    """Runs the pipeline to its end.

    Args:
      paths: prompt files.
      out: folder for the images, the metadata, rejects and summary.
      config: of the run.
      flags: Beam's own; the local runner if they name none.
      progress: a folder on this machine for `progress.Bar`.

    Raises, before any image is generated:
      PromptFileError: if a prompt file can't be used.
      RunConfigError: if the model can't do what the configuration asks of every row, or a flag is not known.
      RunnerError: if the runner isn't there; also later, if it fails or loses elements.
      CheckpointError, ConfigError, TokenizerError: if the model is not there or can't be used.
      StorageError: if the output can't be written.
    """
    pipeline = runners.pipeline(flags)  # first, since storage takes its flags from there
    paths = list(paths)
    if not paths:
        raise PromptFileError("no prompt files: name at least one")
    for path in paths:
        next(read_rows(functools.partial(storage.open_binary, path), path))
    config = preflight.check_model(preflight.with_whole_paths(config))
    run = Run(config, out, progress, uuid.uuid4().hex, workers=runners.workers(pipeline))
    store, sink = storage.open_store(out), sink_of(run)
    with store.exclusive(terminal.note), store.removing(temporary_name(run.name, "")):
        preflight.check_output(sink, config)
        sink.remove_leftovers()
        check_writable(store, run.name)
        run = _with_engines(run, flags, store)
        build(pipeline, paths, run)
        runners.finish(pipeline)
        return manifest.counted(run)
