"""`sdjax generate PROMPTS... OUT`: the main job."""

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from typer import Argument, Context, Option

from pipelines import stopping, terminal
from pipelines.cli import FAILED
from pipelines.cli.command import Command

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.transforms.manifest import Counts


class Options(NamedTuple):
    """What is to be generated, from where to where.

    config, settings, keys: the run's configuration; later ones go before earlier ones.
    flags: Beam's.
    """

    prompts: Sequence[str]
    out: str
    config: Path | None
    settings: Sequence[str]
    keys: Mapping[str, Any]
    sweeps: Sequence[str]
    flags: Sequence[str]
    quiet: bool


def generate(
    context: Context,
    prompts: Annotated[list[str], Argument(metavar="PROMPTS", help="txt, csv, tsv, jsonl or parquet, plain or .gz")],
    out: Annotated[str, Argument(metavar="OUT", help="folder for images, metadata.jsonl and rejects.jsonl")],
    model: Annotated[
        str | None,
        Option(
            metavar="MODEL", help="a bundled model, a diffusers folder, a single file, or org/name (default: emoji)"
        ),
    ] = None,
    config: Annotated[
        Path | None, Option(metavar="FILE", help="YAML with keys of the run and fields for all rows")
    ] = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="a key (model.dtype=bfloat16) or field (steps=30), before FILE's"),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        Option(
            metavar="KEY=VALUES",
            help="all values, for rows that leave KEY open: seed=1..100, steps=10..50..10, sampler=euler,ddim",
        ),
    ] = None,
    wildcards: Annotated[str | None, Option(metavar="FOLDER", help="files for __name__ in prompts")] = None,
    repeat: Annotated[int | None, Option(metavar="N", help="images per row, each of its own seed")] = None,
    quiet: Annotated[bool, Option("--quiet", help="no progress bar")] = False,
) -> Command:
    """Prompt files -> images and metadata."""
    keys = {"model.name": model, "library.wildcards": wildcards, "run.repeat": repeat}
    options = Options(
        prompts,
        out,
        config,
        settings or (),
        {key: value for key, value in keys.items() if value is not None},
        sweep or (),
        context.obj,
        quiet,
    )
    return functools.partial(run, options)


def run(options: Options) -> int:
    """Generates, and prints what became of everything."""
    stopping.hint("the same command goes on from here")
    counts = _generate(options, _config(options))
    _print(counts, options.out)
    nothing = counts.rows == counts.rejected_rows
    return FAILED if counts.problems() or counts.broken_files or counts.failed or counts.damaged or nothing else 0


def _config(options: Options) -> "RunConfig":
    from pipelines.config import settings
    from pipelines.sources import sweeps

    keys = settings.read_file(options.config) if options.config else {}
    keys = {**keys, **settings.read_settings(options.settings), **options.keys}
    return settings.make(keys, sweeps.read_sweeps(options.sweeps))


def _generate(options: Options, config: "RunConfig") -> "Counts":
    from pipelines import generate, progress

    folder = tempfile.mkdtemp(prefix="sdjax-progress-")
    bar = contextlib.nullcontext() if options.quiet else progress.Bar(folder, terminal.console())
    try:
        with bar:
            return generate.run_pipeline(options.prompts, options.out, config, list(options.flags), folder)
    except Exception as error:  # in a worker, a runner adds to it or makes another one of it
        errors = progress.read(folder).errors
        if not errors:
            raise
        raise OSError(errors[0]) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _print(counts: "Counts", out: str) -> None:
    from pipelines.sinks import open_output
    from pipelines.sinks.output import REJECTS

    rejected = counts.rejected_rows + counts.failed + counts.broken_files + counts.damaged
    terminal.line(
        f"rows     {counts.rows:>8}  {counts.rows - counts.rejected_rows} good, {counts.rejected_rows} rejected"
    )
    terminal.line(
        f"images   {counts.wanted:>8}  {counts.made} made, {counts.there} there already, "
        f"{counts.duplicates} the same as others, {counts.failed} failed"
    )
    sink = open_output(out)
    terminal.line(f"written  {sink.path(sink.manifest)}")
    if rejected:
        terminal.line(f"rejects  {sink.path(REJECTS)}")
    for name, count, what in (
        ("cut", counts.cut_prompts, "images whose prompt was cut: see prompt_cut and negative_prompt_cut"),
        ("files", counts.broken_files, "broke off: what follows in them is missing"),
        ("damaged", counts.damaged, "files of earlier runs that are no whole images, and that no row asks for"),
    ):
        if count:
            terminal.line(f"{name:<8} {count:>8}  {what}")
    for problem in counts.problems():
        terminal.line(f"BUG: {problem}")
