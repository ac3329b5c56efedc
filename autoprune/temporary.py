"""Temporary folders and files that end with their process: what a killed one left behind, the next start removes.

The owner holds a lock of the kernel on each of them for as long as it lives. So a process of another container that
shares the folder is told apart from a dead one, and a process number that was given again from its owner.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

_PREFIX, _SUFFIX = "autoprune-", ".held"
"""Files of others, and of versions that held no locks, have other names."""

_kept: list[int] = []


class TemporaryFolder(AbstractContextManager[Path]):
    """A folder of this user alone, removed at the end of a `with` block, by `close`, or when the process ends.

    Args:
        purpose: a word for its name.
    """

    def __init__(self, purpose: str) -> None:
        self.path, lock = _held(lambda: tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-", suffix=_SUFFIX))
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder and all that it holds."""
        self._end()


def temporary_file(purpose: str, content: bytes) -> Path:
    """Write a file that this user alone can read, and that is removed when the process ends.

    Args:
        purpose: a word for its name.
        content: of the file.
    """

    def made() -> str:
        opened, name = tempfile.mkstemp(prefix=f"{_PREFIX}{purpose}-", suffix=_SUFFIX)
        os.close(opened)
        return name

    path, lock = _held(made)
    _kept.append(lock)  # until the process ends
    atexit.register(path.unlink, missing_ok=True)
    path.write_bytes(content)
    return path


def remove_leftovers() -> list[Path]:
    """Remove temporary folders and files of processes of this user that are dead; return their paths."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        paths = [Path(e.path) for e in entries if e.name.startswith(_PREFIX) and e.name.endswith(_SUFFIX)]
        return [path for path in paths if remove_if_left(path)]
    return []


def remove_if_left(path: Path) -> bool:
    """Remove a folder or a file of this user that no process has locked; return whether it did. Links stay."""
    with suppress(OSError):
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(opened)
            plain = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
            if not plain or status.st_uid != os.geteuid():
                return False
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(status, path.lstat()):  # another one has taken its name
                return False
            shutil.rmtree(path) if stat.S_ISDIR(status.st_mode) else path.unlink()
            return True
        finally:
            os.close(opened)
    return False


def _held(make: Callable[[], str]) -> tuple[Path, int]:
    """Make a folder or a file and lock it; again if another start took it for a leftover before it was locked."""
    while True:
        path = Path(make())
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError:  # a file system without locks, where nothing is removed by others
            return path, lock
        if path.exists():
            return path, lock
        os.close(lock)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
