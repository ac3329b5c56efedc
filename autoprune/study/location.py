"""Where studies are kept: a file of the run folder, or a storage that several runs share. Without any database."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from autoprune.errors import RunFolderError, UsageError

SCHEMES = ("postgresql+psycopg", "journal")
OWN_FILE = "sqlite"
"""In place of a URL: the file of the run folder."""

_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")


@dataclass(frozen=True)
class SharedStorage:
    """A database or journal that several runs share, by URL; the studies of a run begin with `run_id`.

    `url` is kept as it was written: its `$NAME` references become values of the environment only when it is opened, so
    that no password is ever printed or stored. Raises `UsageError` for another scheme or a password in plain text.
    """

    url: str
    run_id: str

    def __post_init__(self) -> None:
        scheme, colon, rest = self.url.partition(":")
        if not colon or scheme not in SCHEMES or not rest:
            raise UsageError(
                f"a storage is postgresql+psycopg://USER:$PASSWORD@HOST/DATABASE or journal:PATH; got scheme {scheme!r}"
            )
        if scheme == "journal":
            return
        parts = urlsplit(self.url)
        passwords = [parts.password, *(value for key, value in parse_qsl(parts.query) if "password" in key)]
        if any(password and not _VARIABLE.fullmatch(password) for password in passwords):
            raise UsageError(
                "the URL of a storage is kept with the run, so it holds no password: write $NAME in its place and set "
                "the variable NAME, or keep it in ~/.pgpass"
            )

    @property
    def scheme(self) -> str:
        """Kind of the storage."""
        return self.url.partition(":")[0]

    @property
    def path(self) -> Path:
        """File of a journal."""
        return Path(self.expanded().partition(":")[2])

    def expanded(self) -> str:
        """The URL with values for its `$NAME` references; `UsageError` when one is not set."""

        def value(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise UsageError(f"the storage {self.url} refers to ${match[1]}, which is not set")
            before, after = self.url[: match.start()], self.url[match.end() :]
            secret = (before.endswith(":") and after.startswith("@")) or before.endswith("password=")
            # A password may hold any character; other parts are taken as they are, a port or a whole host with it.
            return quote(os.environ[match[1]], safe="") if secret else os.environ[match[1]]

        return _VARIABLE.sub(value, self.url)

    def redacted(self, text: str) -> str:
        """A message without the values that the URL refers to."""
        for name in _VARIABLE.findall(self.url):
            if value := os.environ.get(name):
                text = text.replace(value, f"${name}").replace(quote(value, safe=""), f"${name}")
        return text

    def __str__(self) -> str:
        return self.url


def absolute(url: str) -> str:
    """Return a URL that works from any folder: the path of a journal is made absolute."""
    scheme, _, path = url.partition(":")
    return f"journal:{Path(path).resolve()}" if scheme == "journal" and path else url


StudyLocation = Path | SharedStorage
"""A SQLite file, or a storage that is shared."""


def study_name(location: StudyLocation, name: str) -> str:
    """The name of a run's study in its location."""
    return f"{location.run_id}/{name}" if isinstance(location, SharedStorage) else name


def file_of(location: StudyLocation) -> Path | None:
    """The file that holds the studies of a location; `None` for a database server."""
    if isinstance(location, Path):
        return location
    return location.path if location.scheme == "journal" else None


def is_empty(location: StudyLocation) -> bool:
    """Whether nothing was written to the file of a location yet, or it is not there."""
    file = file_of(location)
    return file is not None and not (file.exists() and file.stat().st_size)


def readers_url(path: Path) -> str:
    """URL with which SQLite opens a file only to read it.

    Beside a write-ahead log SQLite wants a file for readers, which cannot be made in a folder without write permission.
    """
    ours = os.access(path.parent, os.W_OK) or Path(f"{path}-wal").exists()
    return f"file:{quote(str(path))}?mode=ro" + ("" if ours else "&immutable=1")


def missing_file(file: Path) -> RunFolderError:
    """Return the error for a file of studies that is gone."""
    return RunFolderError(f"{file}, which holds the studies of this run, is gone. Restore it")


def unusable_file(file: Path, cause: str) -> RunFolderError:
    """Return the error for a file of studies that cannot be read or written."""
    return RunFolderError(
        f"the study {file} cannot be used: {cause}. What was finished is kept. Check that its folder can be written, "
        "has space left, and that it is a study of this program."
    )
