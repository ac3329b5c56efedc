"""Files that are written whole or not at all, and JSON that is read without surprises."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoprune.errors import RunFolderError
from autoprune.temporary import remove_if_left

_KINDS = {
    stat.S_ISLNK: "a symbolic link",
    stat.S_ISDIR: "a folder",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
}

_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.\d+\.tmp")
"""Name of a file that is being written; it is locked until it has its own name."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary name, flush to disk, rename: the old file survives a crash or a full disk.

    Raises:
        RunFolderError: when the folder cannot be written, the disk is full, or the path is no plain file.
    """
    # Short, because a name may be as long as the file system allows; of its own, because two files may be written.
    temporary = path.with_name(f".{digest_of_bytes(path.name.encode())[:12]}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_plain(path)
        temporary.unlink(missing_ok=True)  # of a process of this number that was killed
        opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with os.fdopen(opened, "wb") as handle:
            with suppress(OSError):  # no locks on this file system
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        with suppress(OSError, ValueError):
            temporary.unlink()
        raise RunFolderError(
            f"{path} cannot be written: {getattr(error, 'strerror', None) or error}. The file is as it was before; "
            "free some space or choose another folder, and run the same command again."
        ) from error


def remove_torn(folder: Path) -> None:
    """Remove what `write_atomic` left unfinished in a folder and those in it, because its process was killed."""
    for path in sorted(folder.rglob(".*.tmp")):
        if _TEMPORARY.fullmatch(path.name):
            remove_if_left(path)


def require_plain(path: Path) -> None:
    """Raise `RunFolderError` when a path is there and no plain file: a link, a device, a pipe or a folder."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), None)
        if kind is not None:
            raise RunFolderError(f"{path} is {kind}, and stays as it is. Give the path of a file, or of a new one.")


def digest_of_bytes(data: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parsed_json(text: str | bytes) -> Any:
    """Parse JSON; `ValueError` also for lists in lists that are too deep for the parser."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error
