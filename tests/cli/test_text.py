"""Names and paths of the user's are printed as they are: rich reads `[...]` and `:...:` as its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoprune
from autoprune.cli.listings import listing
from autoprune.cli.options import say
from tests.cli.test_main import run

ODD = "ta[sk]/x[/dim]:cat:\\[b]"


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say(ODD * 20)
    assert capsys.readouterr().out == ODD * 20 + "\n"


@pytest.mark.parametrize("folder", ["ta[sk]", "x[/dim]", ":cat:"])
def test_init(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "init", f"{folder}/my_task.py") == 0
    path = f"{folder}/my_task.py"
    assert capsys.readouterr().out == f"written: {path}\nnext: autoprune check --task {path}:make_task\n"


def test_the_command_that_goes_on_after_a_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoprune.pipeline.search", stopped)
    monkeypatch.chdir(tmp_path)
    autoprune.runfolder.RunFolder(Path(ODD)).create()
    autoprune.runfolder.RunFolder(Path(ODD)).write_config({})
    assert run(monkeypatch, "search", "--run-dir", ODD) == 130
    assert f"autoprune search --run-dir '{ODD}'" in capsys.readouterr().out


def test_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "status", ODD) == 2
    assert ODD in capsys.readouterr().err


def test_where_studies_went(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def moved(*_: Any) -> list[str]:
        return ["rung-0"]

    monkeypatch.setattr("autoprune.pipeline.studies.move_studies", moved)
    assert run(monkeypatch, "study", "copy", ODD, "--to", f"journal:{ODD}") == 0
    assert capsys.readouterr().out == f"{ODD} goes on with journal:{ODD}, which has its 1 studies: rung-0\n"


def test_listings(capsys: pytest.CaptureFixture[str]) -> None:
    listing("target", {"a[b]": "a CPU [b]:cat:"})
    assert "a[b]    a CPU [b]:cat:" in capsys.readouterr().out


def test_files_of_a_run(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / ODD
    path.parent.mkdir(parents=True, exist_ok=True)
    copied.folder.path.rename(path)
    assert run(monkeypatch, "front", str(path)) == 0
    assert f"{path}/models/" in capsys.readouterr().out
    assert run(monkeypatch, "report", str(path)) == 0
    assert capsys.readouterr().out == f"{path}/report.html\n"
    policy, model = copied.models[0].digest, path / "m.onnx"
    assert run(monkeypatch, "export", str(path), "--policy", policy, "--out", str(model)) == 0
    assert capsys.readouterr().out.startswith(f"{model}\n")
