from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from autoprune.errors import RunFolderError
from autoprune.search.storage import storage_errors


def test_a_full_disk_is_one_message_with_its_cause() -> None:
    full = sqlite3.OperationalError("database or disk is full")
    wrapped = OperationalError("commit", None, full)
    wrapped.__cause__ = full
    message = r"study\.db cannot be used: database or disk is full\. What was finished"
    with pytest.raises(RunFolderError, match=message), storage_errors(Path("study.db")):
        raise wrapped


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), storage_errors(Path("study.db")):
        raise KeyError("not the database")
