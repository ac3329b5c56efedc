from __future__ import annotations

import pytest

from autoprune.errors import UsageError
from autoprune.study.location import SharedStorage, study_name


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/db", "a storage is postgresql.* got scheme 'mysql'"),
        ("nonsense", "got scheme 'nonsense'"),
        ("journal:", "got scheme 'journal'"),
        ("postgresql+psycopg://me:secret@host/db", "holds no password: write"),
        ("postgresql+psycopg://me@host/db?password=secret", "holds no password: write"),
    ],
)
def test_what_is_no_storage(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        SharedStorage(url, "run")
    assert "secret" not in str(raised.value)


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    location = SharedStorage("postgresql+psycopg://me:$PRUNE_PASSWORD@host/db", "run")
    with pytest.raises(UsageError, match=r"refers to \$PRUNE_PASSWORD, which is not set"):
        location.expanded()
    monkeypatch.setenv("PRUNE_PASSWORD", "s3cret")
    assert location.expanded() == "postgresql+psycopg://me:s3cret@host/db"
    assert "s3cret" not in f"{location} {location!r} {location.redacted('password s3cret is wrong')}"


@pytest.mark.parametrize("url", ["postgresql+psycopg://me:$PW@host/db", "postgresql+psycopg://me@host/db?password=$PW"])
def test_a_password_may_hold_any_character(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "p@ss/w#rd:x")
    location = SharedStorage(url, "run")
    assert location.expanded() == url.replace("$PW", "p%40ss%2Fw%23rd%3Ax")
    assert location.redacted("no p@ss/w#rd:x, p%40ss%2Fw%23rd%3Ax") == "no $PW, $PW"


def test_studies_of_a_shared_storage_carry_the_run() -> None:
    assert study_name(SharedStorage("journal:/j", "abc"), "rung-0") == "abc/rung-0"
