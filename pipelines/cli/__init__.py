"""The command line: `program` is the process, `app` has all commands, and each command has a file of its own here.

What takes time to import is imported where it is used: signals are heard from the first line of `program` on.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from pipelines import stopping, terminal

if TYPE_CHECKING:
    from pipelines.cli.command import Command

FAILED = 1


def program() -> NoReturn:
    """The command line as a process of its own, which it ends with the status of the command.

    Besides those of `main`: 128 and the number of the signal after Ctrl-C (130), SIGTERM (143) and SIGHUP (129).
    """
    stopping.run(_whole_command)


def _whole_command() -> int:
    terminal.use()
    try:
        status = main()
        terminal.flush()
        return status
    except stopping.ReaderGone:
        return stopping.READER_GONE
    except OSError as error:
        terminal.error(str(error))
    except BaseException as bug:
        terminal.crash(bug)
    return FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status.

    0, 1 if something failed (an image, a file that breaks off, every row), 2 for bad usage, 141 if nobody reads what is
    printed any more.

    Args:
      arguments: of the command line; what stands after `--` are Beam's flags. None takes those of the process.
    """
    from pipelines.cli import app

    _quiet_libraries()
    try:
        command = app.parsed(list(sys.argv[1:] if arguments is None else arguments))
        return command if isinstance(command, int) else _run(command)
    except stopping.ReaderGone:
        return stopping.READER_GONE
    except (ValueError, OSError) as error:
        # Every error of ours is one of these and says what to do.
        terminal.error(str(error))
        return FAILED


def _run(command: "Command") -> int:
    from sdjax.storage import TEMPORARY, use_interruption_guard

    use_interruption_guard(stopping.undoing)
    stopping.temporary_files(TEMPORARY)
    return command()


def _quiet_libraries() -> None:
    # Beam tells of each failing element with its traceback; the failure is reported once, in plain words.
    logging.getLogger("apache_beam.runners").setLevel(logging.CRITICAL)
    # The tokenizer's library says on import that there is no torch, which is as it should be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
