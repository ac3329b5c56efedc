"""Running a program whose output and time have limits."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

_CHUNK, _MOST_ERRORS = 2**16, 2**20


def run_bounded(command: Sequence[str], stdin: bytes, *, most_bytes: int, most_s: float) -> tuple[int, bytes, bytes]:
    """Run a program to its end.

    Args:
        command: the program and its arguments.
        stdin: what it reads.
        most_bytes: of its output; a program that writes more is ended.
        most_s: seconds after which it is ended.

    Returns:
        Exit code, output, and the first megabyte of its messages.

    Raises:
        TimeoutError: when it took or wrote too much.
        FileNotFoundError: when there is no such program.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(most_s, end)
        timer.start()
        errors = bytearray()
        threads = [
            threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True),
            threading.Thread(target=_collect, args=(process.stderr, errors, _MOST_ERRORS), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            output = bytearray()
            if not _collect(process.stdout, output, most_bytes, stop=True):
                process.kill()
                raise TimeoutError(f"it wrote more than {most_bytes:,} bytes")
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        threads[1].join()
    if late.is_set():
        raise TimeoutError(f"it took more than {most_s:,.0f} s")
    return code, bytes(output), bytes(errors)


def _feed(pipe: IO[bytes], content: bytes) -> None:
    with suppress(OSError), pipe:  # a program that ends does not read the rest
        pipe.write(content)


def _collect(pipe: IO[bytes], content: bytearray, most: int, *, stop: bool = False) -> bool:
    """Read a pipe to its end, and keep `most` bytes; with `stop`, end there and return `False`."""
    while chunk := pipe.read(_CHUNK) if not stop else getattr(pipe, "read1", pipe.read)(_CHUNK):
        if stop and len(content) + len(chunk) > most:
            return False
        content += chunk[: max(0, most - len(content))]
    return True
