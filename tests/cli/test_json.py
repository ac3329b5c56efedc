"""Each command that shows something prints one JSON document with --json, and nothing else on its output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import autoprune
from autoprune.cli import main as cli
from tests.cli.test_main import BROKEN, run

DOCUMENTS = {
    "front RUN": {"metric", "dense", "models", "baselines", "others"},
    "status RUN": {"state", "holder", "time", "studies", "failures"},
    "pick RUN --knee": {"digest", "score", "latency_ms_predicted", "onnx"},
    "tasks": {"tasks", "models"},
    "spaces": {"spaces"},
    "targets": {"targets"},
    "units --task digits --model mlp": {"units", "layers", "fixed", "unsupported_operators", "fixed_input_sizes"},
    "report RUN --out PAGE": {"page"},
    "init TASK": {"written", "task"},
    "sparsify --task SPEC --dense DENSE --finetune none --out OUT": {"share_of_zeros", "test_score", "weights"},
    "sparsify --task SPEC --dense DENSE --epochs 0.1 --pattern none --term l1:1 --term clip:1 --out OUT": {"terms"},
    "finetune RUN --policy DIGEST --epochs 0.1 --from-scratch": {"digest", "epochs", "score", "score_of_run"},
    "export RUN --policy DIGEST --out OUT": {"format", "model", "relative_difference"},
}


@pytest.mark.parametrize("command", DOCUMENTS)
def test_one_document(
    command: str, finished: autoprune.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    places = {
        "RUN": str(finished.folder.path), "DIGEST": finished.models[0].digest, "OUT": str(tmp_path / "m.onnx"),
        "PAGE": str(tmp_path / "r.html"), "TASK": str(tmp_path / "my_task.py"),
        "DENSE": str(finished.folder.dense), "SPEC": finished.config.task,
    }  # fmt: skip
    assert run(monkeypatch, *(places.get(word, word) for word in command.split()), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() >= DOCUMENTS[command]
    assert document["schema"] == 1


def test_every_command_that_ends_has_it() -> None:
    def commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
        for key, command in group.commands.items():
            yield f"{name}{key}", command
            yield from commands(command, f"{name}{key} ") if hasattr(command, "commands") else ()

    every = dict(commands(typer.main.get_command(cli.app)))
    lacking = {name for name, command in every.items() if not any("--json" in p.opts for p in command.params)}
    assert lacking == {"serve", "dashboard", "study"}  # two run until they are stopped, one is a group alone


def test_numbers_of_units_have_names_with_their_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "units", "--task", "digits", "--model", "mlp", "--json") == 0
    unit = json.loads(capsys.readouterr().out)["units"][0]
    assert 0 < unit["params_share"] < 1
    assert unit["latency_share"] is None
    assert unit["levels"][-1] == unit["width"]


def test_check_says_what_failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    (tmp_path / "bad.py").write_text(BROKEN)
    assert run(monkeypatch, "check", "--task", f"{tmp_path / 'bad.py'}:make_task", "--json") == 1
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    states = {finding["stage"]: finding["works"] for finding in document["findings"]}
    assert not document["works"]
    assert states["trace and units"] is False
    assert states["shrink"] is None
    assert "trace and units" in shown.err


def test_status_is_watched_in_lines(
    finished: autoprune.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "status", str(finished.folder.path), "--json", "--watch") == 2
    assert "--json is one document" in capsys.readouterr().err


def test_exit_codes_are_in_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " ".join(cli.EXIT_CODES.split()) in text
    for code in ("0 done", "1 a check says no", "2 refused", "70 a fault", "130 and 143 stopped", "141 whoever"):
        assert code in text


def test_a_fault_has_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr("autoprune.pipeline.search", broken)
    assert run(monkeypatch, "search", "--run-dir", "nothing", "--quiet") == 70
    shown = capsys.readouterr()
    assert "nobody expected this" in shown.err
    assert shown.out == ""


def test_a_log_file_has_what_ended_a_search(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def refused(events: Any, **_: Any) -> None:
        events.stage("Task and units")
        raise autoprune.AutopruneError("no such task")

    monkeypatch.setattr("autoprune.pipeline.search", refused)
    log = tmp_path / "search.log"
    assert run(monkeypatch, "search", "--run-dir", str(tmp_path / "x"), "--quiet", "--log-file", str(log)) == 2
    first, last = log.read_text().splitlines()
    assert first.endswith("Task and units")
    assert last.endswith("ended by AutopruneError: no such task")
