"""Where studies are kept: a file of the run folder, or a storage that several runs share. Without any database."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote

from autoprune.errors import RunFolderError, UsageError

SCHEMES = ("postgresql+psycopg", "journal")
OWN_FILE = "sqlite"
"""In place of a URL: the file of the run folder."""

_DATABASE = re.compile(
    r"postgresql\+psycopg://(?:(?P<user>[^:@/?#\s$]+)(?::(?P<password>[^@/?#\s]+))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:@/?#\s$\[\]]*)(?::(?P<port>\d{1,5}))?/(?P<database>[^:@/?#\s$]*)"
    r"(?:\?(?P<query>[^#\s]*))?"
)
_SECRET = re.compile("pass|pwd|secret|token")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")


@dataclass(frozen=True)
class SharedStorage:
    """A database or journal that several runs share, by URL; the studies of a run begin with `run_id`.

    `url` is kept as it was written: its `$NAME` becomes a value of the environment only when it is opened, so that no
    password is ever printed or stored. It stands in the place of a password alone: other parts would send whatever the
    environment holds to a server. Raises `UsageError` for another scheme or a password in plain text.
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
            if "\0" in rest:
                raise UsageError("the path of a journal must not hold a NUL")
            return
        # The message must not repeat a URL that may hold a password.
        parts = _DATABASE.fullmatch(self.url)
        pairs = parse_qsl(parts["query"] or "", keep_blank_values=True) if parts else []
        secrets = [value for key, value in pairs if _SECRET.search(key.lower())]
        if parts and any(not _VARIABLE.fullmatch(text) for text in (parts["password"] or "$none", *secrets)):
            raise UsageError(
                "the URL of a storage is kept with the run, so it holds no password: write $NAME in its place and set "
                "the variable NAME, or keep it in ~/.pgpass"
            )
        if not parts or len(_VARIABLE.findall(self.url)) != len(secrets) + bool(parts["password"]):
            raise UsageError(
                "a storage is postgresql+psycopg://USER:$PASSWORD@HOST:PORT/DATABASE, with $NAME in the place of the "
                "password alone, and no other /, # or ? in it; what was given is not"
            )

    @property
    def scheme(self) -> str:
        """Kind of the storage."""
        return self.url.partition(":")[0]

    @property
    def path(self) -> Path:
        """File of a journal."""
        return Path(self.url.partition(":")[2])

    def expanded(self) -> str:
        """The URL with the password of its `$NAME` reference; `UsageError` when the variable is not set."""

        def value(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise UsageError(f"the storage {self.url} refers to ${match[1]}, which is not set")
            return quote(os.environ[match[1]], safe="")  # a password may hold any character

        return self.url if self.scheme == "journal" else _VARIABLE.sub(value, self.url)

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
