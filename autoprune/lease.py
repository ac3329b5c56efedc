"""A lease on a folder: one process holds it at a time, on whichever host, and its death frees it.

On one host the kernel's file lock decides: it dies with its process. Where other hosts see the folder but not the lock,
the holder's heartbeat decides: a counter in the file, watched for ten seconds. No clock of one host is compared with
that of another.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoprune.errors import RunFolderError
from autoprune.files import parsed_json

BEAT_SECONDS = 2.0
_BEATS_MISSED = 5
_MOST_BYTES = 10_000
"""A lease is a few hundred bytes long."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lease; `born` tells it from a later process of the same number."""

    host: str
    pid: int
    born: str
    since: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        """Describe this process, from now on."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(host=_host(), pid=os.getpid(), born=_born(os.getpid()), since=now)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition(' ')[0]} since {self.since}"


@contextmanager
def held(path: Path, beat_s: float = BEAT_SECONDS) -> Iterator[None]:
    """Hold the lease in the file `path` for the length of a `with` block.

    Args:
        path: file of the lease; made when it is absent.
        beat_s: seconds between two heartbeats.

    Raises:
        RunFolderError: when another process holds the lease (the message says which), or the file cannot be used.
    """
    try:
        # A link would have its target emptied, and a pipe would wait for a reader.
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise OSError(errno.EINVAL, "it is no plain file")
    except OSError as error:
        raise RunFolderError(f"the lease {path} cannot be used: {error.strerror}. Choose another --run-dir.") from error
    # Not in append mode, where Linux writes at the end of the file and ignores the offset.
    with os.fdopen(opened, "r+") as file:
        locked = _lock(file)
        other = _read(path)
        if locked is False or (other is not None and _alive(path, other, locked, beat_s)):
            raise RunFolderError(
                f"the run folder {path.parent} is in use by {other or 'another process'}. "
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
    """Return the process that holds the lease in this file, or that died with it; `None` when it was given back."""
    return _read(path)


def is_gone(holder: Holder) -> bool:
    """Return whether a holder on this host no longer runs; always false for a holder on another host."""
    return holder.host == _host() and _born(holder.pid) != holder.born


def _lock(file: Any) -> bool | None:
    """Return whether the kernel gave us the lock; `None` where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False


def _alive(path: Path, other: Holder, locked: bool | None, beat_s: float) -> bool:
    if other.host == _host():
        return not locked and not is_gone(other)
    for _ in range(_BEATS_MISSED):
        time.sleep(beat_s)
        if _read(path) != other:
            return True
    return False


def _beat(file: Any, me: Holder, stop: threading.Event, beat_s: float) -> None:
    beat = 0
    while not stop.wait(beat_s):
        beat += 1
        with suppress(OSError):  # a disk that is full for a moment does not end the lease
            _write(file, replace(me, beat=beat))


def _write(file: Any, holder: Holder) -> None:
    # In place and padded: another file would not carry the lock, and a truncated one would name nobody.
    os.pwrite(file.fileno(), json.dumps(asdict(holder)).ljust(400).encode() + b"\n", 0)
    os.fsync(file.fileno())


def _read(path: Path) -> Holder | None:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            holder = Holder(**parsed_json(file.read(_MOST_BYTES)))
    except (OSError, ValueError, TypeError):
        return None
    texts = (holder.host, holder.born, holder.since)
    return holder if all(isinstance(text, str) for text in texts) and type(holder.pid) is int else None


def _host() -> str:
    """Return the name of this host and of its boot: no process survives a reboot."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return socket.gethostname()


def _born(pid: int) -> str:
    """Return when a process began, in ticks since boot; empty when there is no such process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
