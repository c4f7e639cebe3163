"""All commands together, and what their arguments mean; running them comes after."""

import contextlib
import io
from collections.abc import Sequence

import typer

from pipelines import terminal
from pipelines.cli import convert, depth, env, fields, generate, grid, inspect, sheet, verify
from pipelines.cli.command import Command

_NAME = "sdjax"
_EPILOG = (
    "What stands after -- are Beam's own flags, for example: "
    "-- --direct_running_mode=multi_processing --direct_num_workers=2"
)

# Help is plain text: nothing in it is markup.
app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.callback()
def _check_flags(context: typer.Context) -> None:
    """Image data sets made with Stable Diffusion in JAX, reproducibly."""
    if context.obj and context.invoked_subcommand != "generate":
        context.fail("only generate takes Beam's flags")


app.command(epilog=_EPILOG)(generate.generate)
for _command in (
    verify.verify,
    sheet.sheet,
    grid.grid,
    depth.depth,
    convert.convert,
    inspect.inspect,
    fields.fields,
    env.env,
):
    app.command()(_command)


def parsed(arguments: Sequence[str]) -> Command | int:
    """The command that arguments ask for, or the exit status if there is nothing to run: after help, or bad usage.

    Raises:
      ReaderGone: if nobody reads the help.
    """
    own, flags = _cut(list(arguments))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            command: Command | int = typer.main.get_command(app).main(
                own, prog_name=_NAME, standalone_mode=False, obj=flags
            )
    except typer.TyperException as error:
        terminal.error(_usage(error))
        return error.exit_code
    except SystemExit as end:  # of what completes a line in a shell
        command = end.code if isinstance(end.code, int) else 0
    terminal.text(printed.getvalue())
    return command


def _cut(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The arguments of ours, and Beam's."""
    if "--" not in arguments:
        return arguments, ()
    cut = arguments.index("--")
    return arguments[:cut], tuple(arguments[cut + 1 :])


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else _NAME
    return f"{error.format_message().rstrip('.')}; {path} --help says how it is used"
