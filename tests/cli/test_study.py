"""`autoprune status` and `autoprune study copy`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

import autoprune
from tests.cli.test_main import run


def test_a_run_that_goes_on_with_other_budgets_is_not_finished(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copied.folder.read_config() or {}
    copied.folder.write_config(config | {"budgets": [*config["budgets"], "90%"]})
    assert run(monkeypatch, "status", str(copied.folder.path)) == 0
    assert "searching; nobody works on it" in capsys.readouterr().out


def test_status_and_a_run_that_goes_on_with_another_storage(
    copied: autoprune.Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path, front = str(copied.folder.path), copied.folder.front.read_text()
    assert run(monkeypatch, "status", path) == 0
    shown = capsys.readouterr().out
    assert "finished; nobody works on it" in shown
    with sqlite3.connect(copied.folder.study) as database:
        query = "select count(*) from trials join studies using (study_id) where study_name = 'rung-0'"
        (proxies,) = database.execute(query).fetchone()
    assert proxies >= 9
    assert f"rung-0: {proxies} done" in shown
    assert "best within" in shown
    journal = f"journal:{tmp_path / 'journal'}"
    assert run(monkeypatch, "search", "--run-dir", path, "--storage", journal) == 2
    assert "move them with `autoprune study copy" in capsys.readouterr().err
    assert run(monkeypatch, "study", "copy", path, "--to", journal) == 0
    copied.folder.study.unlink()
    capsys.readouterr()
    assert run(monkeypatch, "status", path) == 0
    assert capsys.readouterr().out == shown
    autoprune.search(run_dir=path)
    assert copied.folder.front.read_text() == front
    assert not copied.folder.study.exists()
    assert run(monkeypatch, "study", "copy", path, "--to", "sqlite") == 0
    assert not copied.folder.shared_study.exists()
    (tmp_path / "journal").unlink()
    capsys.readouterr()
    assert run(monkeypatch, "status", path) == 0
    assert f"rung-0: {proxies} done" in capsys.readouterr().out
    autoprune.search(run_dir=path)
    assert copied.folder.front.read_text() == front
    assert run(monkeypatch, "study", "copy", path, "--to", "sqlite") == 2
    assert "study.db already" in capsys.readouterr().err
