"""The main pipeline: prompt files -> rows -> jobs -> batches -> pictures -> metadata.

One direction. Each transform wraps a plain function of this module or of its neighbours; pictures are written
in the stage that makes them, and only metadata goes on.
"""

import contextlib
import dataclasses
import functools
import json
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import StandardOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from pipelines import checks, pictures, storage
from pipelines.config import RunConfig, RunConfigError
from pipelines.equipment import Equipment, equipment, make_engine
from pipelines.progress import Reporter
from pipelines.prompts import Asked, PromptFileError, Reject, Row, parse, read_rows, shortened
from sdjax.assets import BUNDLED
from sdjax.engine import Engine, Result
from sdjax.images.encode import FORMATS, EncodeError, PictureError, encode, read_metadata
from sdjax.images.steps import animation, strip
from sdjax.job import Job
from sdjax.plan import Task, Together
from sdjax.program import Bucket
from sdjax.text.templates import NO_WILDCARDS, Wildcards, wildcard_lines, wildcard_name

METADATA, REJECTS, SUMMARY = "metadata.jsonl", "rejects.jsonl", "summary.json"
# Groups of rows in which the metadata are sorted, one after the other: by the first digits of the id.
_GROUP_DIGITS = 2


class Run(NamedTuple):
    """What every worker of a run has to know.

    progress: a folder of the machine that started the run.
    name: of this run, unlike any other's; seeds that are to be drawn at random are drawn from it.
    shards: into how many parts the sampling is cut.
    """

    config: RunConfig
    out: str
    progress: str
    name: str
    shards: int


class Counts(NamedTuple):
    """What became of everything. `problems` says where these don't add up; nowhere, unless there is a bug.

    broken_files: prompt files that break off; their rows up to there are among `rows`.
    cut_prompts: of the images wanted, those whose prompt or negative prompt was longer than the text encoder reads.
    """

    rows: int
    rejected_rows: int
    broken_files: int
    cut_prompts: int
    wanted: int
    made: int
    there: int
    duplicates: int
    failed: int

    def problems(self) -> list[str]:
        """The sums that are wrong."""
        ended = self.made + self.there + self.duplicates + self.failed
        return [] if self.wanted == ended else [f"{self.wanted} images wanted, but {ended} accounted for"]


class Wanted(NamedTuple):
    """An image that a row asks for.

    bucket: jobs of one may be batched: they share a compiled program and what else a batch has in common.
    notes: of where it comes from, for its metadata.
    pictures: what metadata say of those that it begins with.
    cut: whether a prompt of it was too long.
    source, line: where the row is.
    """

    job: Job
    bucket: tuple[Bucket, Together]
    notes: Mapping[str, Any]
    pictures: str
    cut: bool
    source: str
    line: int


# --- What a worker process holds ---

_lock = threading.Lock()


@functools.cache
def _reporter(folder: str) -> Reporter:
    return Reporter(folder)


@functools.lru_cache(maxsize=1)  # a process that does several runs one after the other holds one model
def _engine(given: Equipment, progress: str) -> Engine:
    reporter = _reporter(progress)

    def on_compile(bucket: Bucket) -> None:
        reporter.doing(f"compiling {bucket.width}x{bucket.height}")

    reporter.doing(f"loading {given.model}")
    engine = make_engine(given, on_compile)
    reporter.doing("")
    return engine


@contextlib.contextmanager
def engine_of(run: Run) -> Iterator[Engine]:
    """The process' engine, for one thread at a time."""
    with _lock, _reporting_failure(run):
        yield _engine(equipment(run.config), run.progress)


@contextlib.contextmanager
def _reporting_failure(run: Run) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # told in plain words, then raised as it is
        _reporter(run.progress).failed(_said(error))
        raise


@functools.lru_cache(maxsize=1)
def wildcards_of(folder: str | None, run_name: str) -> Wildcards:
    """The wildcards of a run, each file read once by a process."""
    if folder is None:
        return NO_WILDCARDS

    @functools.cache
    def files() -> dict[str, str]:
        found = (path for path in storage.list_files(folder) if path.endswith(".txt"))
        return {wildcard_name(path.removeprefix(folder).lstrip("/")): path for path in found}

    def read(name: str) -> tuple[str, ...]:
        return wildcard_lines(storage.read_whole(files()[name]), files()[name])

    return Wildcards(files, read, folder)


# --- The plain functions ---


def rows_of(path: str, run: Run) -> Iterator[Row]:
    """The rows of a prompt file; one that breaks off ends with a row of line 0 that says so."""
    try:
        for row in read_rows(lambda: storage.open_binary(path), path):
            _reporter(run.progress).add("rows")
            yield row
    except PromptFileError as error:
        yield Row(path, 0, None, "", str(error))


def plan(row: Row, run: Run) -> list[tuple[str, Wanted]] | Reject:
    """The images that a row asks for, by id, or why there are none."""
    jobs = parse(row, run.config, run.name, wildcards_of(run.config.wildcards, run.name))
    if isinstance(jobs, Reject):
        return jobs
    with engine_of(run) as engine:
        try:
            wanted = [_wanted(engine, asked, row) for asked in jobs]
        except Exception as error:  # no row, whatever is in it, may stop the others
            return Reject(row.source, row.line, row.text, shortened(_said(error)))
    _reporter(run.progress).add("wanted", len(wanted))
    return wanted


def _wanted(engine: Engine, asked: Asked, row: Row) -> tuple[str, Wanted]:
    """The id of an image, and what of it is needed further: its pictures are read again when it is made."""
    task = engine.prepare(pictures.located(asked.job, row.source), asked.notes)
    cut = bool(task.metadata["prompt_cut"] or task.metadata["negative_prompt_cut"])
    together = task.bucket, task.together
    return task.id, Wanted(task.job, together, asked.notes, task.metadata["pictures"], cut, row.source, row.line)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | OSError) else repr(error)


def sample(wanted: Mapping[str, Wanted], run: Run) -> Iterator[tuple[Mapping[str, Any], str | None]]:
    """Makes pictures and writes each as soon as it is there; gives their metadata, and what went wrong.

    Raises:
      RunConfigError: if the ids were worked out on a machine on which they would be others.
    """
    reporter = _reporter(run.progress)
    failed: list[tuple[str, str]] = []

    def tasks(engine: Engine) -> Iterator[Task]:
        for image_id, each in wanted.items():
            try:
                task = engine.prepare(each.job, each.notes)
            except Exception as error:  # what could be read when it was planned can be gone
                failed.append((image_id, _said(error)))
                continue
            if task.id == image_id:
                yield task
            elif task.metadata["pictures"] != each.pictures:
                failed.append((image_id, "a picture has changed since this was planned"))
            else:
                raise RunConfigError(
                    f"this worker's fingerprint, {dict(engine.fingerprint)}, is not that of the worker which planned "
                    "its images; all workers of a run need devices of one kind and the same versions"
                )

    with engine_of(run) as engine:
        for result in engine.run(tasks(engine)):
            reporter.doing("")
            problem = _write(result, run)
            reporter.add("failed" if problem else "made")
            yield result.metadata, problem
    reporter.doing("")
    for image_id, problem in failed:
        reporter.add("failed")
        yield {"id": image_id}, problem


def _write(result: Result, run: Run) -> str | None:
    """Writes a picture; says why, if it can't be one."""
    if result.problem:
        return str(result.problem)
    if not result.finite:
        narrow = result.metadata["dtype"] != "float32"
        hint = "; try --set dtype=float32" if narrow else "; its numbers grow beyond float32, by guidance or weights"
        return f"the network gave NaN or infinity in {result.metadata['dtype']}{hint}"
    try:
        data = encode(result.image, result.metadata, run.config.format)
    except EncodeError as error:
        return str(error)
    if result.previews:  # before the picture, whose being there says that all is done
        _write_previews(result, run)
    storage.write_whole(storage.image_path(run.out, result.metadata["id"], FORMATS[run.config.format].extension), data)
    return None


def _write_previews(result: Result, run: Run) -> None:
    """Writes the kept steps of a picture, as a strip and as an animation."""
    told, image = result.metadata, result.image
    last = result.previews[-1].clean
    if image.shape != last.shape:  # it was made larger, or put back into its picture
        image = last if told["only_masked"] else np.asarray(Image.fromarray(image).resize(last.shape[1::-1]))
    title = f"{told['prompt']} ({told['sampler']}, {told['steps_taken']} steps, seed {told['seed']})"
    kind = run.config.animation
    for extension, data in (
        ("png", strip(result.previews, image, title)),
        (kind, animation(result.previews, image, kind)),
    ):
        storage.write_whole(storage.steps_path(run.out, told["id"], extension), data)


def file_name(image_id: str, extension: str) -> str:
    """The path of a picture from the output's folder."""
    return storage.image_path("", image_id, extension)


def manifest_row(image_id: str, metadata: Mapping[str, Any], extension: str) -> dict[str, Any]:
    """A row of `metadata.jsonl` as Hugging Face's ImageFolder reads it, keys sorted as a picture has them."""
    return {"file_name": file_name(image_id, extension), **dict(sorted(metadata.items()))}


# --- The transforms ---


class _Plan(beam.DoFn):
    """Rows -> (id, wanted image); rejects aside."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def process(self, row: Row) -> Iterator[Any]:
        planned = plan(Row(*row), self._run)
        if isinstance(planned, Reject):
            yield TaggedOutput("rejects", planned._asdict())
            if planned.line == 0:
                yield TaggedOutput("counts", ("broken_files", 1))
                return
            yield TaggedOutput("counts", ("rejected_rows", 1))
        else:
            yield TaggedOutput("counts", ("wanted", len(planned)))
            yield TaggedOutput("counts", ("cut_prompts", sum(wanted.cut for _, wanted in planned)))
            yield from planned
        yield TaggedOutput("counts", ("rows", 1))


class _DropDone(beam.DoFn):
    """(id, images wanted and files there) -> one for each id that has no file; files that are there aside."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def process(self, group: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        image_id, found = group
        wanted, files = list(found["wanted"]), list(found["files"])
        if files:
            yield TaggedOutput("there", (image_id, files[0]))
        if not wanted:
            return
        yield TaggedOutput("counts", ("duplicates", len(wanted) - 1))
        if files:
            yield TaggedOutput("counts", ("there", 1))
            _reporter(self._run.progress).add("wanted", -len(wanted))
        else:
            _reporter(self._run.progress).add("wanted", 1 - len(wanted))
            # Any of them gives the same picture; the first by its place is told if it fails.
            yield image_id, min(wanted, key=lambda each: (each.source, each.line))


class _Sample(beam.DoFn):
    """Batches of wanted images -> (id, manifest row); what the network could not make aside."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def process(self, batch: tuple[Any, Iterable[tuple[str, Wanted]]]) -> Iterator[Any]:
        extension = FORMATS[self._run.config.format].extension
        wanted = dict(batch[1])
        for metadata, problem in sample(wanted, self._run):
            if problem:
                failed = wanted[metadata["id"]]
                reject = Reject(failed.source, failed.line, shortened(failed.job.prompt), problem)
                yield TaggedOutput("counts", ("failed", 1))
                yield TaggedOutput("rejects", reject._asdict())
            else:
                yield TaggedOutput("counts", ("made", 1))
                yield metadata["id"], manifest_row(metadata["id"], metadata, extension)


def _batch_key(image_id: str, wanted: Wanted, shards: int) -> str:
    """Images of one key are batched: they share a compiled program, and a worker."""
    return f"{wanted.bucket} {int(image_id[:8], 16) % shards}"


def whole_row(
    image_id: str, new: Iterable[dict[str, Any]], old: Iterable[dict[str, Any]], files: Iterable[str]
) -> dict[str, Any] | None:
    """The manifest row of a picture: of this run, of the old manifest, or else from the picture itself.

    None for an old row whose picture is gone.

    Raises:
      PictureError: if a picture made earlier is damaged.
    """
    for row in new:
        return row
    for path in files:
        extension = path.rpartition(".")[2]
        name = file_name(image_id, extension)
        for row in old:
            if row["file_name"] == name:
                return row
        try:
            return manifest_row(image_id, read_metadata(storage.read_whole(path), path), extension)
        except PictureError as error:
            raise PictureError(f"{error}: delete the file, and it is made again") from error
    return None


def _grouped_row(image_id: str, found: Mapping[str, Iterable[Any]], run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    with _reporting_failure(run):
        row = whole_row(image_id, **found)
    if row is not None:
        yield image_id[:_GROUP_DIGITS], row


def files_there(out: str, run: Run) -> Iterator[tuple[str, str]]:
    """Id and path of each picture of an output."""
    with _reporting_failure(run):
        for done in storage.list_done(out):
            yield done.id, done.path


def old_rows(out: str, run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the manifest as it was left, by id; none if there is no manifest yet.

    Raises:
      StorageError: if it is not what a run writes.
    """
    path = storage.join(out, METADATA)
    with _reporting_failure(run):
        if not storage.exists(path):
            return
        try:
            for number, row in enumerate(storage.read_jsonl(path), 1):
                if not isinstance(row.get("id"), str) or not isinstance(row.get("file_name"), str):
                    raise storage.StorageError(f"{path}, line {number}: no id or no file_name")
                yield row["id"], row
        except storage.StorageError as error:
            raise storage.StorageError(f"{error}: delete the file, and it is made anew") from error


def group_path(run: Run, digits: str) -> str:
    """Where a part of the manifest lies until the whole is written."""
    return storage.join(run.out, f"{storage.TEMPORARY}{run.name}-{digits}")


def write_group(group: tuple[str, Iterable[dict[str, Any]]], run: Run) -> str:
    """Writes rows whose ids begin alike, sorted by id, to a temporary file; gives their first digits."""
    digits, rows = group
    by_id = {row["id"]: row for row in rows}
    with _reporting_failure(run):
        storage.write_jsonl(group_path(run, digits), (by_id[image_id] for image_id in sorted(by_id)))
    return digits


def write_manifest(groups: Iterable[str], run: Run) -> None:
    """Joins the groups to `metadata.jsonl`."""
    rows = (row for digits in sorted(groups) for row in storage.read_jsonl(group_path(run, digits)))
    with _reporting_failure(run):
        storage.write_jsonl(storage.join(run.out, METADATA), rows)


def write_rejects(rejects: Iterable[dict[str, Any]], run: Run) -> None:
    """Writes `rejects.jsonl` in the order of the files; an earlier run's goes if there are none."""
    path = storage.join(run.out, REJECTS)
    rows = sorted(rejects, key=lambda reject: (reject["source"], reject["line"], reject["text"]))
    with _reporting_failure(run):
        if rows:
            storage.write_jsonl(path, rows)
        else:
            storage.delete(path, missing_ok=True)


def write_summary(counts: Iterable[tuple[str, int]], run: Run) -> None:
    """Writes `summary.json`: what became of everything, and how the run was configured."""
    known = {**dict.fromkeys(Counts._fields, 0), **dict(counts)}
    config = {**dataclasses.asdict(run.config), "job": dict(run.config.job)}
    text = json.dumps({"counts": known, "config": config}, indent=2, sort_keys=True)
    with _reporting_failure(run):
        storage.write_whole(storage.join(run.out, SUMMARY), text.encode() + b"\n")


def _gathered(found: Any, label: str) -> Any:
    """All elements as one list, empty if there are none."""
    return found | f"Gather{label}" >> beam.combiners.ToList()


def build(root: beam.Pipeline, paths: Iterable[str], run: Run) -> None:
    """Adds the whole pipeline to `root`."""
    rows = root | "Paths" >> beam.Create(sorted(paths)) | "Read" >> beam.FlatMap(rows_of, run)
    planned = rows | "Spread" >> beam.Reshuffle() | "Plan" >> beam.ParDo(_Plan(run)).with_outputs(main="wanted")
    output = root | "Output" >> beam.Create([run.out])
    files = output | "List" >> beam.FlatMap(files_there, run)
    todo = (
        {"wanted": planned.wanted, "files": files}
        | "Join" >> beam.CoGroupByKey()
        | "DropDone" >> beam.ParDo(_DropDone(run)).with_outputs(main="wanted")
    )
    made = (
        todo.wanted
        | "Bucket"
        >> beam.MapTuple(lambda image_id, wanted: (_batch_key(image_id, wanted, run.shards), (image_id, wanted)))
        | "Batch" >> beam.GroupIntoBatches(run.config.host_batch)
        | "Sample" >> beam.ParDo(_Sample(run)).with_outputs(main="rows")
    )
    groups = (
        {"new": made.rows, "old": output | "OldRows" >> beam.FlatMap(old_rows, run), "files": todo.there}
        | "JoinRows" >> beam.CoGroupByKey()
        | "WholeRow" >> beam.FlatMapTuple(lambda image_id, found: _grouped_row(image_id, found, run))
        | "Group" >> beam.GroupByKey()
        | "WriteGroup" >> beam.Map(write_group, run)
    )
    counts = (planned.counts, todo.counts, made.counts) | "Counts" >> beam.Flatten() | beam.CombinePerKey(sum)
    rejects = (planned.rejects, made.rejects) | "Rejects" >> beam.Flatten()
    _ = _gathered(groups, "Groups") | "WriteManifest" >> beam.Map(write_manifest, run)
    _ = _gathered(rejects, "Rejects") | "WriteRejects" >> beam.Map(write_rejects, run)
    _ = _gathered(counts, "Counts") | "WriteSummary" >> beam.Map(write_summary, run)


# Keys whose values are bundled names or paths.
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


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """The same with paths that workers and `verify` find from any folder; names on a hub and addresses stay."""
    changes: dict[str, Any] = {}
    for key, bundled in _PATHS.items():
        value = getattr(config, key)
        if value and value not in bundled and os.path.exists(value):
            changes[key] = os.path.abspath(value)
    return dataclasses.replace(config, **changes)


def run_pipeline(paths: Iterable[str], out: str, config: RunConfig, flags: list[str], progress: str) -> Counts:
    """Runs the pipeline to its end.

    Args:
      paths: prompt files.
      out: folder for the pictures, the metadata, rejects and summary.
      config: of the run.
      flags: Beam's own; without a runner among them the local one.
      progress: a folder on this machine for `progress.Bar`.

    Raises:
      PromptFileError: if a file can't be used, before anything is made.
      RunConfigError: if the model can't do what the configuration asks of every row, or a flag is not known, likewise.
      CheckpointError, ConfigError, TokenizerError: if the model is not there or can't be used, likewise.
      StorageError: if the output can't be written, likewise.
    """
    paths = list(paths)
    for path in paths:
        next(read_rows(functools.partial(storage.open_binary, path), path))
    options = checks.checked_options(flags)
    named = options.view_as(StandardOptions).runner
    config = checks.check_model(_with_whole_paths(config))
    run = Run(config, out, progress, uuid.uuid4().hex, shards=config.shards or checks.workers(options))
    with storage.only_run(out):
        checks.check_format(out, config.format)
        storage.remove_leftovers(out)
        # A full or read-only output is found now, not after the first hour.
        storage.write_whole(group_path(run, "probe"), b"\n")
        storage.delete(group_path(run, "probe"))
        pipeline = beam.Pipeline(runner=named or FnApiRunner(), options=options)
        try:
            build(pipeline, paths, run)
            pipeline.run().wait_until_finish()
        finally:
            with contextlib.suppress(storage.StorageError):  # what ended the run is told, and the next run cleans up
                storage.delete_temporaries(out, run.name)
    summary = json.loads(storage.read_whole(storage.join(out, SUMMARY)))
    return Counts(**summary["counts"])
