"""`autoprune profile`: options that go together, and where it writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from autoprune.cli.profile import _READ_WITH, profile_app
from autoprune.pipeline import profiles
from tests.cli.test_main import run

Calls = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the command asks for, instead of doing it."""
    made: Calls = []

    def check(path: Path, events: object, **options: Any) -> SimpleNamespace:
        made.append(("check", options))
        return SimpleNamespace(holds=True)

    def table(path: Path, events: object, **options: Any) -> None:
        made.append(("out", options))

    def kit(path: Path, events: object, **options: Any) -> None:
        made.append(("kit", options))

    monkeypatch.setattr(profiles, "check_profile", check)
    monkeypatch.setattr(profiles, "profile_table", table)
    monkeypatch.setattr(profiles, "write_kit", kit)
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--task t --threads 4 kit --out k.zip", "--task, --threads would be ignored before 'kit'; write the options"),
        ("--seed 0 kit", "--seed would be ignored before 'kit'"),
        ("--out t.json import r.json", "options of `autoprune profile import` behind it"),
        ("--check t.json --out n.json --explain", "--out, --explain would be ignored beside --check"),
        ("--check t.json --table n.json", "--table would be ignored beside --check"),
        ("--check t.json --space multiples", "--space would be ignored beside --check"),
        ("--out n.json --table t.json", "--table would be ignored beside --out"),
        ("--out n.json --explain --table t.json", "--table would be ignored beside --out"),
        ("--out n.json --allow-foreign-table", "--allow-foreign-table would be ignored beside --out"),
        ("--explain --table t.json --threads 4", "--threads would be ignored beside --explain"),
        ("--table t.json", "say where the table goes"),
        ("--explain", "say where the table goes"),
    ],
)
def test_no_option_is_accepted_and_ignored(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert run(monkeypatch, "profile", *arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ("--out t.json --task t --space s --threads 2", ("out", {"task": "t", "space": "s", "threads": 2})),
        ("--check t.json --seed 0 --allow-foreign-table", ("check", {"seed": 0, "allow_foreign_table": True})),
        ("kit --task t --precision int8", ("kit", {"task": "t", "precision": "int8"})),
    ],
)
def test_options_reach_what_reads_them(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, arguments: str, call: tuple[str, dict[str, Any]]
) -> None:
    assert run(monkeypatch, "profile", *arguments.split()) == 0
    assert calls == [call]


def test_every_option_is_read_in_some_way() -> None:
    options = {parameter.name for parameter in typer.main.get_group(profile_app).params}
    assert options == set(_READ_WITH).union(*_READ_WITH.values())


@pytest.mark.parametrize("place", ["file/t.json", "folder", "x" * 300])
@pytest.mark.parametrize("command", ["--task digits", "kit --task digits", "import results.json"])
def test_a_place_that_cannot_be_written_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, place: str
) -> None:
    def measured(config: object) -> None:
        raise AssertionError("something was done before")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiles, "structure_of", measured)
    Path("file").write_text("")
    Path("folder").mkdir()
    assert run(monkeypatch, "profile", *command.split(), "--out", place) == 2
    error = capsys.readouterr().err
    assert f"error: {place} cannot be written: " in error
    assert error.endswith("Give another file with --out.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
