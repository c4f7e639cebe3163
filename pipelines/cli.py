"""The command line: `sdjax generate | verify | sheet | grid | depth | convert | inspect | env`."""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# Whatever takes time to import is imported where it is used: from here on signals are heard.
from pipelines import stopping, terminal

# Of letters that no font has, so many are shown.
_SHOWN_LETTERS = 40
_FAILED = 1
# Commands that go on where they were stopped.
_RESUMED = ("generate", "depth")


def _parser() -> argparse.ArgumentParser:
    parser = terminal.Parser(
        prog="sdjax", description="Image data sets made with Stable Diffusion in JAX, reproducibly."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    generate = commands.add_parser(
        "generate",
        help="prompt files -> pictures and metadata",
        epilog="What stands after -- are Beam's own flags, for example: "
        "-- --direct_running_mode=multi_processing --direct_num_workers=2",
    )
    generate.add_argument("prompts", nargs="+", metavar="PROMPTS", help="txt, csv, tsv, jsonl or parquet, plain or .gz")
    generate.add_argument("out", metavar="OUT", help="folder for pictures, metadata.jsonl and rejects.jsonl")
    generate.add_argument(
        "--model", help="a bundled model, a diffusers folder, a single file, or org/name on a hub (default: emoji)"
    )
    generate.add_argument("--config", type=Path, metavar="FILE", help="YAML with keys of the run and of jobs")
    generate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one key; goes before FILE")
    generate.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="all values, for rows that leave KEY open: seed=1..100, steps=10..50..10, sampler=euler,ddim",
    )
    generate.add_argument("--wildcards", metavar="FOLDER", help="files for __name__ in prompts")
    generate.add_argument("--repeat", type=int, metavar="N", help="images per row, each of its own seed")
    generate.add_argument("--quiet", action="store_true", help="no progress bar")

    verify = commands.add_parser("verify", help="make pictures again and compare")
    verify.add_argument("out", metavar="OUT", help="an output of generate")
    verify.add_argument("--sample", type=_share, default=1.0, metavar="SHARE", help="of the pictures, 0 to 1 (all)")
    verify.add_argument("--model", help="where the model is now, if it has moved")
    verify.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="likewise, of a file or folder: lora_folder=..."
    )
    verify.add_argument(
        "--trust",
        action="store_true",
        help="read the models, folders and images that the output names; else only what you name, and what is bundled",
    )
    verify.add_argument("--pickled", action="store_true", help="allow pickled files (.ckpt, .pt, .bin)")

    sheet = commands.add_parser("sheet", help="a contact sheet of an output")
    sheet.add_argument("out", metavar="OUT", help="an output of generate")
    sheet.add_argument("--file", help="where to write it, as PNG (default: OUT/sheet.png)")
    sheet.add_argument("--columns", type=int, default=8, help="pictures in a row (default: 8)")
    sheet.add_argument("--limit", type=int, default=200, help="pictures at most (default: 200)")

    grid = commands.add_parser("grid", help="a comparison sheet of an output: its pictures by the values of fields")
    grid.add_argument("out", metavar="OUT", help="an output of generate")
    grid.add_argument("--x", default="", metavar="FIELD", help="along the columns: steps, or steps=5,20")
    grid.add_argument("--y", default="", metavar="FIELD", help="along the rows: sampler, or sampler=euler,ddim")
    grid.add_argument("--z", default="", metavar="FIELD", help="from block to block")
    grid.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only these pictures")
    grid.add_argument("--file", help="where to write it, as PNG (default: OUT/grid.png)")

    depth = commands.add_parser("depth", help="depth maps of a folder of pictures")
    depth.add_argument("pictures", metavar="PICTURES", help="folder of pictures")
    depth.add_argument("out", metavar="OUT", help="folder for the maps: NAME.depth.png, 16 bits, near is bright")
    depth.add_argument(
        "--model", required=True, help="an estimator of depth (MiDaS DPT): a folder, a single file, or emoji"
    )
    depth.add_argument("--pickled", action="store_true", help="allow pickled files (.bin, .pt)")

    convert = commands.add_parser("convert", help="a checkpoint in its other form: single file <-> diffusers folder")
    convert.add_argument("source", metavar="IN", help="a single file, a diffusers folder, a bundled model or org/name")
    convert.add_argument(
        "target", type=Path, metavar="OUT", help="NAME.safetensors for a single file, another name for a folder"
    )
    convert.add_argument(
        "--config", type=Path, metavar="FILE", help="of a single file: its YAML, or a folder of configs"
    )
    convert.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction", "sample"),
        help="of a single file: what its UNet predicts",
    )
    convert.add_argument("--variant", help="of a folder: which weights to take, for example fp16")
    convert.add_argument("--revision", help="of a model on a hub: a branch, a tag or a commit")
    convert.add_argument("--ema", action="store_true", help="take the averaged weights of a single file")
    convert.add_argument("--pickled", action="store_true", help="allow pickled files (.ckpt, .pt, .bin)")
    convert.add_argument("--prune", action="store_true", help="leave out what is not needed for pictures")

    inspect = commands.add_parser("inspect", help="what a model, an adapter or a picture is")
    inspect.add_argument(
        "path", metavar="PATH", help="a picture, any file of weights, a diffusers folder, a bundled model or org/name"
    )
    inspect.add_argument("--pickled", action="store_true", help="allow pickled files (.ckpt, .pt, .bin)")

    commands.add_parser("env", help="versions and devices")
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to 1")
    return share


def program() -> NoReturn:
    """The command line as a process of its own, which it ends with the status of the command.

    Besides those of `main`: 128 and the number of the signal after Ctrl-C (130), SIGTERM (143) and SIGHUP (129).
    """
    stopping.run(_whole_command)


def _whole_command() -> int:
    terminal.use()
    try:
        status = _status()
        terminal.flush()
        return status
    except stopping.ReaderGone:
        return stopping.READER_GONE
    except OSError as error:
        terminal.error(str(error))
    except BaseException as bug:
        terminal.crash(bug)
    return _FAILED


def _status() -> int:
    try:
        return main()
    except SystemExit as end:  # argparse's
        return end.code if isinstance(end.code, int) else _FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status.

    0, 1 if something failed (an image, a file that breaks off, every row), 2 for bad usage, 141 if nobody reads what is
    printed any more.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags: list[str] = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, flags = arguments[:cut], arguments[cut + 1 :]
    parser = _parser()
    options = parser.parse_args(arguments)
    if flags and options.command != "generate":
        parser.error("only generate takes Beam's flags")
    # Beam tells of each failing element with its traceback; what failed is told once, in plain words, below.
    logging.getLogger("apache_beam.runners").setLevel(logging.CRITICAL)
    # The tokenizer's library says on import that there is no torch, which is as it should be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if options.command in _RESUMED:
        stopping.hint("the same command goes on from here")
    try:
        return _run(options, flags)
    except stopping.ReaderGone:
        return stopping.READER_GONE
    except (ValueError, OSError) as error:
        # Every error of ours is one of these and says what to do.
        terminal.error(str(error))
        return _FAILED


def _run(options: argparse.Namespace, flags: list[str]) -> int:
    if options.command == "generate":
        return _generate(options, flags)
    if options.command == "verify":
        return _verify(options)
    if options.command == "sheet":
        return _sheet(options)
    if options.command == "grid":
        return _grid(options)
    if options.command == "depth":
        return _depth(options)
    if options.command == "convert":
        return _convert(options)
    return _inspect(options) if options.command == "inspect" else _env()


def _generate(options: argparse.Namespace, flags: list[str]) -> int:
    from pipelines import config, generate, progress, storage
    from pipelines.records import METADATA
    from pipelines.sources import sweeps
    from pipelines.transforms.manifest import REJECTS

    keys = config.read_file(options.config) if options.config else {}
    keys |= config.read_settings(options.set)
    keys |= {
        name: getattr(options, name) for name in ("model", "repeat", "wildcards") if getattr(options, name) is not None
    }
    run_config = config.make(keys, sweeps.read_sweeps(options.sweep))
    folder = tempfile.mkdtemp(prefix="sdjax-progress-")
    try:
        if options.quiet:
            counts = generate.run_pipeline(options.prompts, options.out, run_config, flags, folder)
        else:
            with progress.Bar(folder, terminal.console()):
                counts = generate.run_pipeline(options.prompts, options.out, run_config, flags, folder)
    except Exception as error:  # in a worker, a runner adds to it or makes another one of it
        errors = progress.read(folder)[2]
        if not errors:
            raise
        raise OSError(errors[0]) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    rejected = counts.rejected_rows + counts.failed + counts.broken_files + counts.damaged
    terminal.line(
        f"rows     {counts.rows:>8}  {counts.rows - counts.rejected_rows} good, {counts.rejected_rows} rejected"
    )
    terminal.line(
        f"images   {counts.wanted:>8}  {counts.made} made, {counts.there} there already, "
        f"{counts.duplicates} the same as others, {counts.failed} failed"
    )
    terminal.line(f"written  {storage.join(options.out, METADATA)}")
    if rejected:
        terminal.line(f"rejects  {storage.join(options.out, REJECTS)}")
    if counts.cut_prompts:
        terminal.line(
            f"cut      {counts.cut_prompts:>8}  images whose prompt was cut: see prompt_cut and negative_prompt_cut"
        )
    if counts.broken_files:
        terminal.line(f"files    {counts.broken_files:>8}  broke off: what follows in them is missing")
    if counts.damaged:
        terminal.line(
            f"damaged  {counts.damaged:>8}  files of earlier runs that are no whole images, and that no row asks for"
        )
    for problem in counts.problems():
        terminal.line(f"BUG: {problem}")
    nothing = counts.rows == counts.rejected_rows
    return _FAILED if counts.problems() or counts.broken_files or counts.failed or counts.damaged or nothing else 0


def _verify(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from pipelines import config, storage, trust, verify
    from pipelines.equipment import make_engine
    from sdjax.checkpoints.tensors import CheckpointError
    from sdjax.engine.engine import Engine

    places = {**config.read_settings(options.set), **({"model": options.model} if options.model else {})}
    made = trust.made_with(options.out)
    if options.sample:  # what needs no model does without
        made = trust.allowed(made, places, options.trust, options.pickled)
    read = trust.reader(options.out, options.trust)

    def engine_for(settings: verify.Settings) -> Engine:
        try:
            return make_engine(made._replace(**settings), read=read)
        except CheckpointError as error:
            if options.model:
                raise
            raise CheckpointError(f"{error}; if the model of this output has moved, say where with --model") from error

    total = sum(verify.sampled(done.id, options.sample) for done in storage.list_done(options.out))
    with Progress(console=terminal.console()) as bar:
        task = bar.add_task("making again", total=total)
        report = verify.remake(options.out, engine_for, options.sample, lambda: bar.advance(task), options.trust)
    for finding in report.findings:
        terminal.line(f"{finding.file}: {finding.problem}")
    terminal.line(
        f"{report.pictures} pictures, {report.remade} made again, {report.exact} the same to the last byte, "
        f"{len(report.findings)} problems"
    )
    if report.other:
        terminal.line(f"{report.other} of another model than {made.model}, not compared; --model says which to take")
    nothing = report.other and not report.remade
    return _FAILED if report.findings or nothing else 0


def _sheet(options: argparse.Namespace) -> int:
    from pipelines import sheet, storage

    target = options.file or storage.join(options.out, "sheet.png")
    count, unreadable = sheet.write(options.out, target, columns=options.columns, limit=options.limit)
    terminal.line(f"{count} pictures in {target}")
    _note_letters(unreadable)
    return 0


def _note_letters(letters: str) -> None:
    if letters:
        shown = letters[:_SHOWN_LETTERS] + ("…" if len(letters) > _SHOWN_LETTERS else "")
        terminal.line(f"note: no font here has {shown}: install one that does (fontconfig finds it) and draw it again")


def _grid(options: argparse.Namespace) -> int:
    from pipelines import grid, storage

    target = options.file or storage.join(options.out, "grid.png")
    axes = grid.Axes(*(grid.read_axis(text) for text in (options.x, options.y, options.z)))
    count, empty, unreadable = grid.write(options.out, target, axes, grid.read_where(options.where))
    terminal.line(f"{count} pictures in {target}" + (f", {empty} places empty" if empty else ""))
    _note_letters(unreadable)
    return 0


def _depth(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from pipelines import depth
    from sdjax.library.depth import load_depth

    with Progress(console=terminal.console()) as bar:
        task = bar.add_task("depth", total=len(depth.pictures_in(options.pictures)))
        mapped = list(
            depth.map_folder(
                options.pictures,
                options.out,
                lambda: load_depth(options.model, pickled=options.pickled),
                lambda: bar.advance(task),
            )
        )
    failed = [each for each in mapped if each.problem]
    there = sum(each.there for each in mapped)
    for each in failed:
        terminal.line(str(each.problem))
    terminal.line(
        f"pictures {len(mapped):>8}  {len(mapped) - there - len(failed)} made, {there} there, {len(failed)} failed"
    )
    return _FAILED if failed else 0


def _convert(options: argparse.Namespace) -> int:
    from pipelines import convert
    from sdjax.checkpoints.streamed import remove_unfinished

    keys = ("config", "prediction_type", "variant", "revision", "ema", "pickled", "prune")
    with stopping.undoing(lambda: None, lambda _: remove_unfinished()):
        written = list(convert.convert(options.source, options.target, **{key: getattr(options, key) for key in keys}))
    for name, value in written:
        terminal.line(f"{name:<22}{value}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from pipelines import inspect

    for name, value in inspect.describe(options.path, options.pickled):
        terminal.line(f"{name:<22}{value}")
    return 0


def _env() -> int:
    from pipelines import inspect

    for name, value in inspect.environment():
        terminal.line(f"{name:<22}{value}")
    return 0


if __name__ == "__main__":
    program()
