"""The main pipeline: prompt files -> rows -> jobs -> batches -> pictures -> metadata.

One direction. Each transform wraps a plain function of this module or of its neighbours; pictures are written
in the stage that makes them, and only metadata goes on. The graph is as plain as can be, so that every runner runs it:
steps that go by element and groups by key, whose elements are cut into batches, and one end.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from PIL import Image

from pipelines import checks, done, pictures, runners, storage
from pipelines.config import RunConfig, RunConfigError
from pipelines.equipment import Equipment, equipment, make_engine
from pipelines.manifest import (
    Counts,
    counted,
    files_there,
    finish,
    group_path,
    grouped_row,
    old_rows,
    steps_there,
    write_group,
)
from pipelines.prompts import Asked, PromptFileError, Reject, Row, parse, read_rows, shortened
from pipelines.records import Sizes, manifest_row
from pipelines.run import Record, Run, reporter_of, reporting_failure, said
from sdjax.assets import BUNDLED
from sdjax.engine import Engine, Result
from sdjax.images.encode import FORMATS, EncodeError, encode
from sdjax.images.previews import animation, strip
from sdjax.job import Job
from sdjax.plan import Task, Together
from sdjax.program import Bucket
from sdjax.text.wildcards import MAX_FILE_BYTES, NO_WILDCARDS, Wildcards, files_in, wildcards_of_files

_DAMAGED = "not the whole image of this name, and no row of this run asks for it: run its prompts again, or delete it"


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


@functools.lru_cache(maxsize=1)  # a process that does several runs one after the other holds one model
def _engine(given: Equipment, progress: str) -> Engine:
    reporter = reporter_of(progress)

    def on_compile(bucket: Bucket) -> None:
        reporter.doing(f"compiling {bucket.width}x{bucket.height}")

    reporter.doing(f"loading {given.model}")
    engine = make_engine(given, on_compile)
    reporter.doing("")
    return engine


@contextlib.contextmanager
def engine_of(run: Run) -> Iterator[Engine]:
    """The process' engine, for one thread at a time."""
    with _lock, reporting_failure(run):
        yield _engine(equipment(run.config), run.progress)


@functools.lru_cache(maxsize=1)
def wildcards_of(folder: str | None, run_name: str) -> Wildcards:
    """The wildcards of a run, each file read once by a process."""
    if folder is None:
        return NO_WILDCARDS

    def paths() -> Iterable[str]:
        if os.path.isdir(folder):
            return files_in(folder)
        return (path.removeprefix(folder).lstrip("/") for path in storage.list_files(folder))

    def read(path: str) -> bytes:
        return storage.read_whole(storage.join(folder, *path.split("/")), MAX_FILE_BYTES + 1)

    return wildcards_of_files(paths, read, folder)


# --- The plain functions ---


def rows_of(path: str, run: Run) -> Iterator[Row]:
    """The rows of a prompt file; one that breaks off ends with a row of line 0 that says so."""
    try:
        for row in read_rows(lambda: storage.open_binary(path), path):
            reporter_of(run.progress).add("rows")
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
            return Reject(row.source, row.line, row.text, shortened(said(error)))
    reporter_of(run.progress).add("wanted", len(wanted))
    return wanted


def _wanted(engine: Engine, asked: Asked, row: Row) -> tuple[str, Wanted]:
    """The id of an image, and what of it is needed further: its pictures are read again when it is made."""
    task = engine.prepare(pictures.located(asked.job, row.source), asked.notes)
    cut = bool(task.metadata["prompt_cut"] or task.metadata["negative_prompt_cut"])
    together = task.bucket, task.together
    return task.id, Wanted(task.job, together, asked.notes, task.metadata["pictures"], cut, row.source, row.line)


def sample(wanted: Mapping[str, Wanted], run: Run) -> Iterator[tuple[Mapping[str, Any], Sizes | str]]:
    """Makes pictures and writes each as soon as it is there; gives their metadata, and sizes or what went wrong.

    Raises:
      RunConfigError: if the ids were worked out on a machine on which they would be others.
    """
    reporter = reporter_of(run.progress)
    failed: list[tuple[str, str]] = []

    def tasks(engine: Engine) -> Iterator[Task]:
        for image_id, each in wanted.items():
            try:
                task = engine.prepare(each.job, each.notes)
            except Exception as error:  # what could be read when it was planned can be gone
                failed.append((image_id, said(error)))
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
            written = _write(result, run)
            reporter.add("failed" if isinstance(written, str) else "made")
            yield result.metadata, written
    reporter.doing("")
    for image_id, problem in failed:
        reporter.add("failed")
        yield {"id": image_id}, problem


def _write(result: Result, run: Run) -> Sizes | str:
    """Writes a picture and gives the sizes of its files; says why, if it can't be one."""
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
    # Before the picture, whose being there says that all is done.
    steps = _write_previews(result, run) if result.previews else ()
    storage.write_whole(storage.image_path(run.out, result.metadata["id"], FORMATS[run.config.format].extension), data)
    return Sizes(len(data), *steps)


def _write_previews(result: Result, run: Run) -> tuple[int, int]:
    """Writes the previews of a picture, as a strip and as an animation; gives the sizes of both."""
    told, image = result.metadata, result.image
    last = result.previews[-1].denoised
    if image.shape != last.shape:  # it was made larger, or put back into its picture
        image = last if told["only_masked"] else np.asarray(Image.fromarray(image).resize(last.shape[1::-1]))
    title = f"{told['prompt']} ({told['sampler']}, {told['steps_taken']} steps, seed {told['seed']})"
    kind = run.config.animation
    both = strip(result.previews, image, title), animation(result.previews, image, kind)
    for extension, data in zip(("png", kind), both, strict=True):
        storage.write_whole(storage.steps_path(run.out, told["id"], extension), data)
    return len(both[0]), len(both[1])


# --- The transforms ---


def _count(name: str, number: int = 1) -> Record:
    return "count", (name, number)


def planned(row: Row, run: Run) -> Iterator[Record]:
    """A row -> images that it asks for, or a reject; and counts."""
    wanted = plan(Row(*row), run)
    if isinstance(wanted, Reject):
        yield "reject", wanted._asdict()
        if wanted.line == 0:
            yield _count("broken_files")
            return
        yield _count("rejected_rows")
    else:
        yield _count("wanted", len(wanted))
        yield _count("cut_prompts", sum(each.cut for _, each in wanted))
        yield from (("image", each) for each in wanted)
    yield _count("rows")


def missing(image_id: str, found: Mapping[str, Iterable[Any]], run: Run) -> Iterator[Record]:
    """Images wanted of an id, and what there is of it -> its manifest row, or the image if it is to be made."""
    wanted, files, steps = list(found["wanted"]), list(found["files"]), dict(found["steps"])
    row = done.whole_row(image_id, files, steps, found["rows"], run.config.animation)
    keeps_steps = any(each.job.preview_every for each in wanted)
    if row and keeps_steps and not done.has_steps(row, steps, run.config.animation):
        row = None
    if row:
        yield "row", (image_id, row)
    elif files and not wanted:
        yield "reject", Reject(files[0][0], 0, "", _DAMAGED)._asdict()
        yield _count("damaged")
    if not wanted:
        return
    yield _count("duplicates", len(wanted) - 1)
    if row:
        yield _count("there")
        reporter_of(run.progress).add("wanted", -len(wanted))
    else:
        reporter_of(run.progress).add("wanted", 1 - len(wanted))
        # Any of them gives the same picture; the first by its place is told if it fails.
        yield "image", (image_id, min(wanted, key=lambda each: (each.source, each.line)))


def batch_key(image: tuple[str, Wanted], shards: int) -> str:
    """Images of one key are batched: they share a compiled program, and a worker."""
    image_id, wanted = image
    return hashlib.sha256(f"{wanted.bucket} {int(image_id[:8], 16) % shards}".encode()).hexdigest()[:16]


def batches(wanted: Iterable[tuple[str, Wanted]], size: int) -> Iterator[dict[str, Wanted]]:
    """The images of one key in batches, which are the same in whatever order they come. All of a key are in memory."""
    by_id = dict(wanted)
    ids = sorted(by_id)
    for start in range(0, len(ids), size):
        yield {image_id: by_id[image_id] for image_id in ids[start : start + size]}


def sampled(wanted: Iterable[tuple[str, Wanted]], run: Run) -> Iterator[Record]:
    """The images of one key -> manifest rows; a reject of what could not be made."""
    extension = FORMATS[run.config.format].extension
    for batch in batches(wanted, run.config.host_batch):
        for metadata, written in sample(batch, run):
            if isinstance(written, str):
                failed = batch[metadata["id"]]
                yield "reject", Reject(failed.source, failed.line, shortened(failed.job.prompt), written)._asdict()
                yield _count("failed")
            else:
                yield "row", (metadata["id"], manifest_row(metadata["id"], metadata, extension, written))
                yield _count("made")


def _pairs(function: Callable[..., Iterable[tuple[str, Any]]], *arguments: Any) -> Any:
    """A step that gives pairs whose keys are encoded alike everywhere."""
    return beam.FlatMap(function, *arguments).with_output_types(tuple[str, Any])


def _only(kind: str) -> Any:
    """Of records, what those of one kind hold: pairs."""
    return _pairs(lambda record: [record[1]] if record[0] == kind else [])


def build(root: beam.Pipeline, paths: Iterable[str], run: Run) -> None:
    """Adds the whole pipeline to `root`: steps that go by element, groups by key, and one end."""
    rows = root | "Paths" >> beam.Create(sorted(paths)) | "Read" >> beam.FlatMap(rows_of, run)
    plans = rows | "Spread" >> beam.Reshuffle() | "Plan" >> beam.FlatMap(planned, run)
    output = root | "Output" >> beam.Create([run.out])
    there = {
        "files": output | "Files" >> _pairs(files_there, run),
        "steps": output | "Steps" >> _pairs(steps_there, run),
        "rows": output | "OldRows" >> _pairs(old_rows, run),
    }
    todo = (
        {"wanted": plans | "Planned" >> _only("image"), **there}
        | "Join" >> beam.CoGroupByKey()
        | "Missing" >> beam.FlatMapTuple(lambda image_id, found: missing(image_id, found, run))
    )
    made = (
        todo
        | "Todo" >> _only("image")
        | "Key" >> _pairs(lambda image: [(batch_key(image, run.shards), image)])
        | "Batch" >> beam.GroupByKey()
        | "Sample" >> beam.FlatMapTuple(lambda _, wanted: sampled(wanted, run))
    )
    groups = (
        (todo, made)
        | "Rows" >> beam.Flatten()
        | "OnlyRows" >> _only("row")
        | "ByDigits" >> _pairs(grouped_row)
        | "Group" >> beam.GroupByKey()
        | "WriteGroup" >> beam.MapTuple(lambda digits, rows: write_group(digits, rows, run))
    )
    records = (plans, todo, made) | "Records" >> beam.Flatten()
    counts = records | "Counts" >> _only("count") | "Sum" >> beam.CombinePerKey(sum)
    _ = (
        (
            groups,
            counts | "Summed" >> beam.Map(lambda count: ("count", count)),
            records | "Rejects" >> beam.Filter(lambda record: record[0] == "reject"),
            output | "Nothing" >> beam.Map(lambda _: _count("rows", 0)),  # where nothing comes there is an end too
        )
        | "Ends" >> beam.Flatten()
        | "Together" >> _pairs(lambda record: [("", record)])
        | "Gather" >> beam.GroupByKey()
        | "Finish" >> beam.MapTuple(lambda _, records: finish(records, run))
    )


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
      RunnerError: if the runner isn't there, likewise; if it fails or loses something.
      CheckpointError, ConfigError, TokenizerError: if the model is not there or can't be used, likewise.
      StorageError: if the output can't be written, likewise.
    """
    pipeline = runners.pipeline(flags)  # first, since storage takes its flags from there
    paths = list(paths)
    for path in paths:
        next(read_rows(functools.partial(storage.open_binary, path), path))
    config = checks.check_model(_with_whole_paths(config))
    run = Run(config, out, progress, uuid.uuid4().hex, shards=config.shards or runners.workers(pipeline))
    with storage.only_run(out), storage.removing_temporaries(out, run.name):
        checks.check_format(out, config.format)
        storage.remove_leftovers(out)
        # A full or read-only output is found now, not after the first hour.
        storage.write_whole(group_path(run, "probe"), b"\n")
        storage.delete(group_path(run, "probe"))
        build(pipeline, paths, run)
        runners.finish(pipeline)
        return counted(run)
