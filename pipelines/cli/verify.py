"""`sdjax verify OUT`."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

from typer import Option

from pipelines import terminal
from pipelines.cli import FAILED
from pipelines.cli.command import Command, Out

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.verify import Report, Settings
    from sdjax.engine.engine import Engine


class Options(NamedTuple):
    """What is to be verified, and what may be read for it."""

    out: str
    share: float
    model: str | None
    settings: Sequence[str]
    trust: bool
    pickled: bool


def verify(
    out: Out,
    sample: Annotated[float, Option(metavar="SHARE", min=0, max=1, help="of the images, 0 to 1 (all)")] = 1.0,
    model: Annotated[str | None, Option(metavar="MODEL", help="where the model is now, if it has moved")] = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="likewise, of a file or folder: library.loras=..."),
    ] = None,
    trust: Annotated[
        bool,
        Option(
            "--trust",
            help="read the models, folders and images that the output names; else only what you name, and what is "
            "bundled",
        ),
    ] = False,
    pickled: Annotated[bool, Option("--pickled", help="allow pickled files (.ckpt, .pt, .bin)")] = False,
) -> Command:
    """Make images again and compare."""
    options = Options(out, sample, model, tuple(settings or ()), trust, pickled)
    return functools.partial(run, options)


def run(options: Options) -> int:
    """Makes them again, and prints what is wrong."""
    from pipelines import trust, verify

    made = _made_with(options)
    read = trust.reader(options.out, options.trust)
    total = verify.count_sampled(options.out, options.share)
    with terminal.progress() as bar:
        task = bar.add_task("making again", total=total)
        report = verify.regenerate(
            options.out,
            lambda settings: _engine(made, settings, read, moved=bool(options.model)),
            options.share,
            lambda: bar.advance(task),
            options.trust,
        )
    _print(report, made.model.name)
    nothing = report.other and not report.remade
    return FAILED if report.findings or nothing else 0


def _made_with(options: Options) -> "RunConfig":
    """What the output was made with, as far as it may be read."""
    from pipelines import trust
    from pipelines.config import settings

    named = settings.read_settings(options.settings) | ({"model.name": options.model} if options.model else {})
    made = trust.made_with(options.out)
    # What needs no model does without.
    return trust.allowed(made, named, options.trust, options.pickled) if options.share else made


def _engine(made: "RunConfig", settings: "Settings", read: Callable[[str], bytes], moved: bool) -> "Engine":
    """For images that were made with some settings."""
    from pipelines.config.recorded import with_names
    from pipelines.loading import make_engine
    from sdjax.checkpoints.tensors import CheckpointError

    try:
        return make_engine(with_names(made, settings), read=read)
    except CheckpointError as error:
        if moved:
            raise
        raise CheckpointError(f"{error}; if the model of this output has moved, say where with --model") from error


def _print(report: "Report", model: str) -> None:
    for finding in report.findings:
        terminal.line(f"{finding.file}: {finding.problem}")
    terminal.line(
        f"{report.images} images, {report.remade} made again, {report.exact} the same to the last byte, "
        f"{len(report.findings)} problems"
    )
    if report.other:
        terminal.line(f"{report.other} of another model than {model}, not compared; --model says which to take")
