from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.errors import RunFolderError, UsageError
from autoprune.study.allowed import remember, require_allowed
from autoprune.study.location import SharedStorage, study_name
from autoprune.study.storage import open_storage


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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:se/cret@host/db", "postgresql+psycopg://me:se#cret@host/db",
        "postgresql+psycopg://me:se?cret@host/db", "postgresql+psycopg://me@host/db?PASSWORD=secret",
        "postgresql+psycopg://me@host/db?sslpassword=secret", "postgresql+psycopg://me:a$PW@host/db",
        "postgresql+psycopg://me@$HOME/db", "postgresql+psycopg://$USER:$PW@host/db",
        "postgresql+psycopg://me@host/db?application_name=$AWS_SECRET",
    ],
)  # fmt: skip
def test_a_url_holds_no_secret_and_sends_none(url: str) -> None:
    with pytest.raises(UsageError, match=r"holds no password|in the place of the password alone") as raised:
        SharedStorage(url, "run")
    assert "cret" not in str(raised.value)


def test_a_server_is_followed_only_when_the_user_named_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    storage = SharedStorage("postgresql+psycopg://me:$PW@elsewhere/db", "run")
    with pytest.raises(RunFolderError, match="on a server that you have not named before"):
        require_allowed(storage)
    remember(storage)
    require_allowed(storage)
    (file,) = tmp_path.rglob("*.json")
    assert file.stat().st_mode & 0o077 == 0
    require_allowed(SharedStorage("journal:/anywhere", "run"))


@pytest.mark.parametrize("content", ["important\n", "{}\n", "no line break", '["op_code"]\n'])
def test_nothing_is_appended_to_a_file_that_is_no_journal(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(RunFolderError, match="is no journal of studies, and stays as it is"):
        open_storage(SharedStorage(f"journal:{path}", "run"))
    assert path.read_text() == content
