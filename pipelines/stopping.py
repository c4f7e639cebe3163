"""How a command ends when a signal tells it to: at once, in one line, with nothing left behind.

Ctrl-C (SIGINT), SIGTERM and SIGHUP are blocked in every thread, and one thread waits for them (`sigwait`). So they
are heard while the main thread is inside XLA's compiler for minutes, and no library is torn out of what it does by an
exception. Worker processes ignore them, so that Ctrl-C in a terminal is heard here alone. The thread that hears one

- points both output streams at nothing, so that whatever breaks from now on breaks quietly,
- freezes the worker processes, notes which files they were writing, and kills them,
- undoes what is under way here (`undoing`): temporary files, folders, locks,
- prints one line and ends the process by `os._exit`: compilers' threads may still be at work, and Python's own way
  out takes away under them what they use.
"""

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

# What a process gives that its reader has left, as of one that SIGPIPE ended.
READER_GONE = 128 + signal.SIGPIPE

# What JAX's cache of compiled programs writes under its final name.
_CACHE_ENTRY = re.compile(r".+-[0-9a-f]{64}-cache")
# In seconds: how long is waited for a thread that makes a file, for processes to stand still or be gone, and after a
# second signal.
_PATIENCE = 1.0

_Made = TypeVar("_Made")


class ReaderGone(Exception):
    """Nobody reads what is printed any more."""


class _State:
    """Of this process: whether `run` has it, whether it stops, what is to be undone, and what to say."""

    def __init__(self) -> None:
        self.owned = False
        self.stopping = False
        self.undo: dict[object, tuple[bool, Callable[[], None]]] = {}
        self.temporary: str | None = None
        self.hint = ""
        self.gate = threading.Lock()
        self.cleaned = threading.Event()


_state = _State()


@contextlib.contextmanager
def _gate() -> Iterator[None]:
    """What a stop waits for, and what is never entered again after it has begun."""
    with _state.gate:
        if not _state.stopping:
            yield
            return
    threading.Event().wait()


@contextlib.contextmanager
def undoing(make: Callable[[], _Made], undo: Callable[[_Made], Any], far: bool = False) -> Iterator[_Made]:
    """A context with what `make` gives, of which `undo` leaves nothing if the process is stopped within.

    The end of the context, by whatever exception, leaves that to its user. `undo` runs in another thread, beside
    the one that is in the context.

    Args:
      make: what may leave something behind; a stop comes before or after it.
      undo: takes that away again; what it raises is of no account.
      far: whether `undo` asks another machine: then it comes after all that is here.
    """
    key = object()
    with _gate():
        made = make()
        _state.undo[key] = far, lambda: undo(made)
    try:
        yield made
    finally:
        _state.undo.pop(key, None)


def temporary_files(prefix: str) -> None:
    """With what the names of files begin that are not whole yet: those of workers are removed."""
    _state.temporary = prefix


def hint(text: str) -> None:
    """What the line says after "stopped"."""
    _state.hint = text


def reader_gone() -> NoReturn:
    """Ends the process as SIGPIPE would, but leaving nothing behind.

    Raises:
      ReaderGone: where the process is not `run`'s to end.
    """
    if not _state.owned:
        raise ReaderGone
    _stop(READER_GONE, "")


def run(command: Callable[[], int]) -> NoReturn:
    """Runs a command as all that this process is for, and ends the process with the status that it gives.

    Temporary files of this process and its workers, whoever makes them, are in one folder, which is removed.
    """
    _state.owned = True
    _watch()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where none can be made, what needs one says so
            folder = stack.enter_context(undoing(lambda: tempfile.mkdtemp(prefix="sdjax-"), _remove_folder))
            os.environ["TMPDIR"] = tempfile.tempdir = folder
        _stop(command(), "")


def _remove_folder(folder: str) -> None:
    # Under another name, nobody puts a file into it meanwhile.
    gone = f"{folder}.gone"
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _watch() -> None:
    """Blocks the signals, here and in all threads to come, and waits for them in a thread."""
    # One that is ignored from the start (by nohup, or in the background of a shell) stays so.
    signals = {
        each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN
    }
    for each in signals:
        # For workers: a shell that starts them unblocks what it inherits, but goes on ignoring what is ignored. Here
        # nothing is lost, for Linux keeps what is blocked, ignored or not.
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_wait, args=(signals,), daemon=True).start()


def _wait(signals: set[signal.Signals]) -> None:
    import psutil  # noqa: F401  # now, so that a stop need not wait for it

    number = signal.Signals(signal.sigwait(signals))
    threading.Thread(target=_wait_again, args=(signals, 128 + number), daemon=True).start()
    words = "stopped" if number == signal.SIGINT else f"stopped by {number.name}"
    _stop(128 + number, f"{words}; {_state.hint}" if _state.hint else words)


def _wait_again(signals: set[signal.Signals], status: int) -> None:
    """A second signal is not made to wait for what is far away."""
    signal.sigwait(signals)
    _state.cleaned.wait(_PATIENCE)
    os._exit(status)


def _stop(status: int, line: str) -> NoReturn:
    """Ends the process, of itself or by a signal: servers that a runner has started are ended, too."""
    entered = _state.gate.acquire(timeout=_PATIENCE)  # a disk that hangs doesn't keep it
    already, _state.stopping = _state.stopping, True
    if entered:
        _state.gate.release()
    if already:
        threading.Event().wait()
    stderr = _muted()
    for path in (*_kill_workers(), *_cache_entries()):
        with contextlib.suppress(OSError):
            os.unlink(path)
    for _, undo in sorted(reversed(list(_state.undo.values())), key=lambda each: each[0]):
        with contextlib.suppress(Exception):
            undo()
    _say(stderr, line)
    _state.cleaned.set()
    os._exit(status)


def _muted() -> int | None:
    """Both streams to nowhere; gives what standard error was."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        numbers = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream]
        stderr = os.dup(numbers[-1])
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in numbers:
            os.dup2(nowhere, number)
        return stderr
    return None


def _say(stderr: int | None, line: str) -> None:
    if stderr is not None and line:
        # Below a bar, which has hidden the cursor.
        begin = "\x1b[?25h\n" if os.isatty(stderr) else ""
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            os.write(stderr, f"{begin}{line}\n".encode())


def _kill_workers() -> list[str]:
    """Kills all that this process has started, and gives the files that they were writing and that are not whole."""
    import psutil

    workers = psutil.Process().children(recursive=True)
    for worker in workers:
        with contextlib.suppress(psutil.Error):
            worker.suspend()
    _until(lambda: all(_is_in(worker, psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE) for worker in workers))
    unfinished = [path for worker in workers for path in _unfinished(worker)]
    for worker in workers:
        with contextlib.suppress(psutil.Error):
            worker.kill()
    psutil.wait_procs(psutil.Process().children(), timeout=_PATIENCE)
    _until(lambda: all(_is_in(worker, psutil.STATUS_ZOMBIE) for worker in workers))
    return unfinished


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)


def _is_in(process: Any, *states: str) -> bool:
    """Whether a process is in one of these states, or gone."""
    import psutil

    try:
        return process.status() in states
    except psutil.NoSuchProcess:
        return True


def _unfinished(process: Any) -> list[str]:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        written = [file.path for file in process.open_files() if file.mode != "r"]
        return [path for path in written if _is_temporary(path) or _CACHE_ENTRY.fullmatch(os.path.basename(path))]
    return []


def _is_temporary(path: str) -> bool:
    return _state.temporary is not None and os.path.basename(path).startswith(_state.temporary)


def _cache_entries() -> list[str]:
    """Compiled programs that this process is about to write; its temporary files have their `undoing`."""
    import psutil

    return [path for path in _unfinished(psutil.Process()) if not _is_temporary(path)]
