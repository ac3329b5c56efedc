"""Options with one meaning each that several commands share, and the console."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from autoprune.errors import UsageError
from autoprune.printable import printable

_AGAIN_SECONDS = 1.0
_END_SECONDS = 7.0
"""Kubernetes and Slurm give 30 s, a user less: what takes longer to close is left to the next start."""

_UNLIMITED = 10_000
out = Console(width=None if sys.stdout.isatty() else _UNLIMITED)
"""Where results go; nothing is cut off or folded where it is no terminal."""

RunDir = Annotated[Path, typer.Argument(help="Run folder of `autoprune search`.")]
Policy = Annotated[str, typer.Option("--policy", help="Digest of a model of the run, or the beginning of it.")]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="Built-in task, package.module:function or file.py:function.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Built-in model.")]
DataOption = Annotated[str | None, typer.Option("--data-dir", help="Folder of the data.")]
SpaceOption = Annotated[str | None, typer.Option("--space", help="Built-in search space or a YAML file.")]
TableOption = Annotated[str | None, typer.Option("--table", help="Latency table made by `autoprune profile`.")]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", help="What latency is measured on (`autoprune targets`), or ssh://user@host."),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="Threads of the runtime.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Batch size that latency is measured at.")]
PrecisionOption = Annotated[str | None, typer.Option("--precision", help="fp32 or int8.")]
DenseOption = Annotated[str | None, typer.Option("--dense", help="Trained weights of the dense model (safetensors).")]
ForeignOption = Annotated[
    bool, typer.Option("--allow-foreign-table", help="Accept a table of another machine; nothing is measured then.")
]
NoiseOption = Annotated[
    bool, typer.Option("--allow-noise", help="Go on where latencies vary by more than 15 %; every report says so.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of everything.")]


_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def minutes_of(text: str) -> float:
    """Return the minutes of a time such as `90s`, `30m` or `1h30m`; `UsageError` for any other text."""
    parts = _TIME.fullmatch(text.replace(" ", "").lower())
    hours, minutes, seconds = (float(part or 0) for part in parts.groups()) if parts else (0.0, 0.0, 0.0)
    total = 60 * hours + minutes + seconds / 60
    if total <= 0:
        raise UsageError(f"--max-time is a time above 0 such as 90s, 30m or 1h30m; got {text!r}")
    return total


def given_options(**values: Any) -> dict[str, Any]:
    """Return the options that were given; the others keep their default, or the value that a resumed run has."""
    return {key: value for key, value in values.items() if value is not None}


def say(text: str) -> None:
    """Print text as it is, with names and paths of the user's: rich would read `[...]` and `:...:` as markup."""
    out.print(Text(printable(text)), soft_wrap=True)


@contextmanager
def interruptible(last_words: Callable[[], None] | None = None) -> Iterator[list[int]]:
    """Let SIGINT, and SIGTERM as Slurm and Kubernetes send it, raise `KeyboardInterrupt`; yield the signals received.

    A second signal during the clean-up changes nothing: the clean-up takes seconds. Python drops an exception that is
    raised inside a destructor or a weak reference's callback: so it is raised again after a second.

    Args:
        last_words: given where the process is to end after a signal. Further signals are ignored then until it is gone,
            and a clean-up that takes too long is cut off after this was called; the next start does what is left of it.
            Without it, signals have their handlers again afterwards.

    In other threads than the main one, where Python handles no signals, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    received: list[int] = []
    again = hasattr(signal, "setitimer")  # not on Windows

    def stop(number: int, frame: object) -> None:
        if not again or number != signal.SIGALRM:
            received.append(number)
        if not _interrupted():
            if again:
                signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, *((signal.SIGALRM,) if again else ()))
    before = {number: signal.signal(number, stop) for number in numbers}
    hook, sys.unraisablehook = sys.unraisablehook, _without_interrupts(sys.unraisablehook)
    try:
        with _cut_off_after(last_words) if last_words else nullcontext():
            yield received
    finally:
        if again:
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if received and last_words else handler)


def end_at_once(code: int) -> NoReturn:
    """End the process with an exit code, without what libraries want to do at its end."""
    out.show_cursor()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # nobody reads it any more
            stream.flush()
    os._exit(code)


@contextmanager
def _cut_off_after(last_words: Callable[[], None]) -> Iterator[None]:
    """End the process some seconds after the first SIGINT or SIGTERM, unless the `with` block has ended before.

    Python writes the numbers of signals to a socket as they come. Its handlers wait until the main thread runs Python
    code again, which takes long where Ray starts on a busy host.
    """
    read, write = socket.socketpair()
    write.setblocking(False)
    before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    _told.append(write.fileno())
    thread = threading.Thread(target=_cut_off, args=(read, last_words), name="clean-up", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _told.pop()
        signal.set_wakeup_fd(before)
        write.close()


_told: list[int] = []
"""Sockets that signals of this process are written to."""


def _tell_nobody() -> None:
    """A forked process has the socket, too: signals that end a worker are none of its parent."""
    if _told:
        signal.set_wakeup_fd(-1)
        _told.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell_nobody)


def _cut_off(read: socket.socket, last_words: Callable[[], None]) -> None:
    """End the process some seconds after the first signal, unless the other side is closed before that."""
    with read:
        first = None
        while first is None:
            if not (told := read.recv(64)):
                return
            first = next((number for number in told if number in (signal.SIGINT, signal.SIGTERM)), None)
        end_s = time.monotonic() + _END_SECONDS
        while (left_s := end_s - time.monotonic()) > 0:
            read.settimeout(left_s)
            with suppress(TimeoutError):
                if not read.recv(64):
                    return
    with suppress(Exception):
        last_words()
    end_at_once(128 + first)


def _without_interrupts(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """Return a hook for exceptions that Python drops, which is silent about an interrupt that is raised again."""
    return lambda dropped: None if isinstance(dropped.exc_value, KeyboardInterrupt) else hook(dropped)


def _interrupted() -> bool:
    """Return whether a `KeyboardInterrupt` is being handled, that is, the clean-up runs."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
