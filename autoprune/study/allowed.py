"""Database servers that the user named once: a run folder alone sends nobody's password to a server."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from autoprune.errors import RunFolderError
from autoprune.files import parsed_json
from autoprune.study.location import SharedStorage

ALLOWED = "AUTOPRUNE_STORAGE"
"""A variable with the URL of a storage that is allowed, where no home folder remembers it."""


def remember(storage: SharedStorage) -> None:
    """Note that the user named a server; without a home folder that can be written, it is named each time."""
    known = _known()
    if storage.scheme == "journal" or storage.url in known:
        return
    path = _path()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(opened, "w") as file:
            json.dump([*known, storage.url], file)


def require_allowed(storage: SharedStorage) -> None:
    """Raise `RunFolderError` for a server that the user never named: its URL came with a run folder."""
    if storage.scheme == "journal" or storage.url in (*_known(), os.environ.get(ALLOWED)):
        return
    raise RunFolderError(
        f"the run keeps its studies on a server that you have not named before: {storage}. If you trust it, name it: "
        f"`autoprune search --storage URL`, or set {ALLOWED} to this URL."
    )


def _known() -> list[str]:
    try:
        known = parsed_json(_path().read_text())
    except (OSError, ValueError):
        return []
    return [url for url in known if isinstance(url, str)] if isinstance(known, list) else []


def _path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "autoprune" / "storages.json"
