"""From the best candidates to models that meet their budget: measured, fitted anew, dropped."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest

import autoprune
from autoprune.errors import TrialError
from autoprune.evaluation import Evaluator
from autoprune.executors.inline import InlineExecutor
from autoprune.latency.table import LatencyTable
from autoprune.pipeline import finalists
from autoprune.pipeline import refit as settle
from autoprune.pipeline.events import Silent
from autoprune.pipeline.prepare import Setup
from autoprune.pipeline.verification import clock_notes
from autoprune.records import Policy
from autoprune.runfolder import RunFolder, read_json, write_json
from autoprune.trials import TrialResult, TrialSpec
from tests.conftest import OPTIONS, SPEC
from tests.pipeline.test_search import study_rows


def test_a_fine_tune_that_fails_is_dropped_with_its_reason(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = next(m.digest for m in [*copied.models, *copied.others] if m.strategy != "uniform")
    shutil.rmtree(copied.folder.path / "models")
    optuna.delete_study(study_name="rung-3", storage=f"sqlite:///{copied.folder.study}")
    honest = Evaluator.__call__

    def sometimes(self: Evaluator, spec: TrialSpec) -> TrialResult:
        if spec.policy.digest() == digest:
            raise TrialError("the loss is nan")
        return honest(self, spec)

    monkeypatch.setattr(Evaluator, "__call__", sometimes)
    notes: list[str] = []
    events = Silent()
    monkeypatch.setattr(events, "note", notes.append)
    again = autoprune.search(run_dir=copied.folder.path, events=events)
    assert any(digest in note and "dropped" in note and "the loss is nan" in note for note in notes)
    assert digest not in {m.digest for m in [*again.models, *again.others]}


def test_a_fine_tune_that_is_undone_is_said(copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied.folder.path / "models")
    optuna.delete_study(study_name="rung-3", storage=f"sqlite:///{copied.folder.study}")
    honest = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda self, spec: dataclasses.replace(honest(self, spec), undone=True))
    notes: list[str] = []
    events = Silent()
    monkeypatch.setattr(events, "note", notes.append)
    again = autoprune.search(run_dir=copied.folder.path, events=events)
    undone = {note.partition(":")[0] for note in notes if "the repaired model is kept" in note}
    assert undone == {m.digest for m in [*again.models, *again.others, *again.baselines]} > set()


def test_a_candidate_that_misses_when_measured_is_reported_and_the_next_is_taken(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = [m for m in [*copied.models, *copied.others] if m.strategy != "uniform"]
    slow = searched[0]
    shutil.rmtree(copied.folder.path / "models")
    optuna.delete_study(study_name="rung-3", storage=f"sqlite:///{copied.folder.study}")

    def measured(setup: Setup, policies: Sequence[Policy]) -> np.ndarray:
        ratios = np.array([setup.predict_ms(policy) for policy in policies]) / setup.table.dense_ms
        return np.where([policy == slow.policy for policy in policies], 0.99, ratios)

    monkeypatch.setattr(finalists, "measured_ratios", measured)
    notes: list[str] = []
    events = Silent()
    monkeypatch.setattr(events, "note", notes.append)
    again = autoprune.search(run_dir=copied.folder.path, events=events)
    assert any(f"{slow.digest} misses {slow.budget} when measured (99.0% of dense" in note for note in notes)
    assert slow.digest not in {m.digest for m in [*again.models, *again.others]}


def test_predictions_that_are_wrong_make_the_table_be_fitted_anew_and_the_search_go_on(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied.folder
    before = LatencyTable.load(folder.table)
    trials_before = len([row for row in study_rows(folder) if row[0] == "rung-0"])
    folder.settled.unlink()
    shutil.rmtree(folder.path / "models")
    optuna.delete_study(study_name="rung-3", storage=f"sqlite:///{folder.study}")
    asked: list[list[Policy]] = []

    def measured(setup: Setup, policies: Sequence[Policy]) -> np.ndarray:
        """Candidates are 8 % slower than the first table says; the next one is right."""
        asked.append(list(policies))
        factor = 1.08 if len(asked) == 1 else 1.0
        return factor * np.array([setup.predict_ms(policy) for policy in policies]) / setup.table.dense_ms

    monkeypatch.setattr(settle, "measured_ratios", measured)
    notes: list[str] = []
    events = Silent()
    monkeypatch.setattr(events, "note", notes.append)
    again = autoprune.search(run_dir=folder.path, events=events)
    table = LatencyTable.load(folder.table)
    assert any("the latency table is fitted anew" in note for note in notes)
    assert table.refits == 1
    assert table.counts["candidate"] == len(asked[0])
    structure = again.dense_model.structure
    was, now = (t.predictor(structure).predict(asked[0]) for t in (before, table))
    assert now.mean() > was.mean() * 1.01
    assert len([row for row in study_rows(folder) if row[0] == "rung-0"]) > trials_before
    assert all(m.meets_budget for m in again.models)
    for model in again.models:
        assert model.latency_ms_predicted == pytest.approx(table.predictor(structure).predict([model.policy])[0])
    assert again.document["latency_table"]["refits"] == 1


def test_a_run_that_was_finishing_is_not_searched_on_in_a_busy_moment(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = copied.models[0].digest
    copied.folder.front.unlink()
    shutil.rmtree(copied.folder.model(digest).path)
    optuna.delete_study(study_name="rung-3", storage=f"sqlite:///{copied.folder.study}")

    def busy(setup: Setup, policies: Sequence[Policy]) -> np.ndarray:
        return 1.08 * np.array([setup.predict_ms(policy) for policy in policies]) / setup.table.dense_ms

    monkeypatch.setattr(settle, "measured_ratios", busy)
    again = autoprune.search(run_dir=copied.folder.path)
    assert {m.digest for m in again.models} == {m.digest for m in copied.models}
    assert LatencyTable.load(copied.folder.table).refits == 0


def test_test_data_that_cannot_be_scored_are_told_before_the_search(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = OPTIONS | {"dense": str(copied.folder.dense), "table": str(copied.folder.table)}

    def failing(*_: object, **__: object) -> None:
        raise TrialError("the metric is nan")

    monkeypatch.setattr("autoprune.pipeline.verification.evaluate", failing)
    with pytest.raises(TrialError, match="on the test data: the metric is nan"):
        autoprune.search(SPEC, run_dir=tmp_path / "run", **options)
    assert not RunFolder(tmp_path / "run").has_study


def test_a_budget_that_no_model_meets_is_told(copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = copied.document["budgets"][-1]
    honest = finalists.meets

    def never(setup: Setup, budget: str, *rest: Any, **named: Any) -> bool:
        return budget != tight and honest(setup, budget, *rest, **named)

    monkeypatch.setattr(finalists, "meets", never)
    monkeypatch.setattr("autoprune.pipeline.verification.meets", never)
    shutil.rmtree(copied.folder.path / "models")
    notes: list[str] = []
    events = Silent()
    monkeypatch.setattr(events, "note", notes.append)
    again = autoprune.search(run_dir=copied.folder.path, events=events)
    assert again.document["unmet_budgets"] == [tight]
    assert any(f"no fine-tuned model meets {tight}" in note for note in notes)


@pytest.mark.parametrize(("budget", "now_ms", "said"), [("1ms", 2.4, "+20%"), ("1ms", 2.02, ""), ("50%", 2.4, "")])
def test_milliseconds_are_doubted_when_the_clock_has_changed(
    copied: autoprune.Run, budget: str, now_ms: float, said: str
) -> None:
    model = copied.models[0]
    path = copied.folder.model(model.digest).metrics
    write_json(path, read_json(path) | {"samples": {"dense": {"median_ms": now_ms}}})
    setup = SimpleNamespace(limits={budget: None}, folder=copied.folder, table=SimpleNamespace(dense_ms=2.0))
    lines = clock_notes(cast(Setup, setup), [model])
    assert [said in line for line in lines] == ([True] if said else [])


def test_nothing_runs_while_latency_is_measured(copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied.folder.path / "models")
    optuna.delete_study(study_name="rung-3", storage=f"sqlite:///{copied.folder.study}")
    running, seen = 0, []
    submit, wait = InlineExecutor.submit, InlineExecutor.wait

    def submitting(self: InlineExecutor, spec: TrialSpec) -> None:
        nonlocal running
        running += 1
        submit(self, spec)

    def waiting(self: InlineExecutor) -> TrialResult:
        nonlocal running
        result = wait(self)
        running -= 1
        return result

    def measured(setup: Setup, policies: Sequence[Policy]) -> np.ndarray:
        seen.append(running)
        return np.array([setup.predict_ms(policy) for policy in policies]) / setup.table.dense_ms

    monkeypatch.setattr(InlineExecutor, "submit", submitting)
    monkeypatch.setattr(InlineExecutor, "wait", waiting)
    monkeypatch.setattr(settle, "measured_ratios", measured)
    monkeypatch.setattr(finalists, "measured_ratios", measured)
    autoprune.search(run_dir=copied.folder.path)
    assert len(seen) >= 2
    assert set(seen) == {0}


@pytest.mark.parametrize(("strategy", "sampler"), [("direct", "gp"), ("direct", "tpe"), ("guided", "gp")])
def test_a_sampler_that_cannot_keep_up_is_pointed_out(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch, strategy: str, sampler: str
) -> None:
    shutil.rmtree(copied.folder.path / "models")
    (copied.folder.path / "study.db").unlink()
    notes: list[str] = []
    events = Silent()
    monkeypatch.setattr(events, "note", notes.append)
    monkeypatch.setattr("autoprune.pipeline.main.run_search", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        autoprune.search(run_dir=copied.folder.path, strategy=strategy, sampler=sampler, events=events)
    pointed_out = any("the gp sampler" in note and "--sampler tpe" in note for note in notes)
    assert pointed_out == ((strategy, sampler) == ("direct", "gp"))
