"""A lease on a folder: one process at a time, wherever it runs, and the next one as soon as it is dead.

On one host the kernel's file lock decides: it dies with its process. Where other hosts see the folder but not the lock,
the holder's heartbeat does: a counter in the file, watched for a while. No clock of any host is compared with another.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoprune.errors import RunFolderError

BEAT_SECONDS = 2.0
_BEATS_MISSED = 5
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease: `born` tells a process from a later one of the same number."""

    host: str
    pid: int
    born: str
    since: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        """This process, from now on."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(host=_host(), pid=os.getpid(), born=_born(os.getpid()), since=now)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition(' ')[0]} since {self.since}"


@contextmanager
def held(path: Path, beat_s: float = BEAT_SECONDS) -> Iterator[None]:
    """Hold the lease in the file `path`; `RunFolderError` that says who holds it while somebody does."""
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunFolderError(f"the lease {path} cannot be used: {error.strerror}. Choose another --run-dir.") from error
    # Not in append mode, where Linux writes at the end whatever place is asked for.
    with os.fdopen(opened, "r+") as file:
        locked = _lock(file)
        there = _read(path)
        if locked is False or (there is not None and _alive(path, there, locked, beat_s)):
            raise RunFolderError(
                f"the run folder {path.parent} is in use by {there or 'another process'}. "
                "Wait until it ends, stop it, or choose another --run-dir."
            )
        me, stop = Holder.here(), threading.Event()
        _write(file, me)
        thread = threading.Thread(target=_beat, args=(file, me, stop, beat_s), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with suppress(OSError):  # a full disk must not hide what ended the run
                file.truncate(0)


def holder(path: Path) -> Holder | None:
    """Who holds or last held the lease in this file without giving it back."""
    return _read(path)


def is_gone(holder: Holder) -> bool:
    """Whether a holder on this host runs no longer; of another host that cannot be told at a glance."""
    return holder.host == _host() and _born(holder.pid) != holder.born


def _lock(file: Any) -> bool | None:
    """Whether the kernel gave us the lock; `None` where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False


def _alive(path: Path, there: Holder, locked: bool | None, beat_s: float) -> bool:
    if there.host == _host():
        return not locked and not is_gone(there)
    for _ in range(_BEATS_MISSED):
        time.sleep(beat_s)
        if _read(path) != there:
            return True
    return False


def _beat(file: Any, me: Holder, stop: threading.Event, beat_s: float) -> None:
    beat = 0
    while not stop.wait(beat_s):
        beat += 1
        with suppress(OSError):  # a disk that is full for a moment does not end the lease of who holds the lock
            _write(file, replace(me, beat=beat))


def _write(file: Any, holder: Holder) -> None:
    # In place and padded: another file would not carry the lock, and a truncated one would name nobody.
    os.pwrite(file.fileno(), json.dumps(asdict(holder)).ljust(400).encode() + b"\n", 0)
    os.fsync(file.fileno())


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _host() -> str:
    """Name of this host and of its boot: after a reboot nothing of before lives."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return socket.gethostname()


def _born(pid: int) -> str:
    """When a process began, in ticks since boot; empty when there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
