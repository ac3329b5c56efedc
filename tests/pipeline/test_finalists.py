"""From the best candidates to models that meet their budget: measured, corrected, dropped."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import optuna
import pytest

import autoprune
from autoprune.device.connect import make_target
from autoprune.errors import LatencyError, TrialError
from autoprune.evaluation import Evaluator
from autoprune.executors.inline import InlineExecutor
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.events import Silent
from autoprune.pipeline.verification import clock_notes
from autoprune.runfolder import RunFolder, read_json
from autoprune.trials import FrontModel, TrialResult, TrialSpec
from tests.conftest import OPTIONS, SPEC
from tests.measurers import SimulatedMeasurer
from tests.pipeline.test_search import study_rows


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def of(self, part: str) -> list[str]:
        return [note for note in self.notes if part in note]


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def scored() -> dict[object, TrialResult]:
    """Trials of the tests before."""
    return {}


@pytest.fixture
def searched(
    copied: autoprune.Run, scored: dict[object, TrialResult], monkeypatch: pytest.MonkeyPatch
) -> autoprune.Run:
    """A run whose search is over, and whose candidates were neither fine-tuned nor measured; a trial is run once for
    all tests.
    """
    run = Evaluator.__call__

    def remembered(self: Evaluator, spec: TrialSpec) -> TrialResult:
        key = spec.policy, spec.fidelity, spec.seed
        if key not in scored:
            scored[key] = run(self, spec)
        return dataclasses.replace(scored[key], number=spec.number, attempt=spec.attempt)

    monkeypatch.setattr(Evaluator, "__call__", remembered)
    shutil.rmtree(copied.folder.path / "models")
    copied.folder.measured.unlink()
    optuna.delete_study(study_name="rung-3", storage=f"sqlite:///{copied.folder.study}")
    return copied


def everything(run: autoprune.Run) -> list[FrontModel]:
    return [*run.models, *run.others, *run.baselines]


def slow(measurer: SimulatedMeasurer, widths: Mapping[str, int], factor: float) -> None:
    """Let the device take longer for one policy than the table says."""
    measurer.slowness = lambda asked: factor if dict(asked) == dict(widths) else 1.0


def test_a_fine_tune_that_fails_is_dropped_with_its_reason(
    searched: autoprune.Run, measurer: SimulatedMeasurer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = next(m.digest for m in everything(searched) if m.strategy != "uniform")
    honest = Evaluator.__call__

    def sometimes(self: Evaluator, spec: TrialSpec) -> TrialResult:
        if spec.policy.digest() == digest:
            raise TrialError("the loss is nan")
        return honest(self, spec)

    monkeypatch.setattr(Evaluator, "__call__", sometimes)
    again = autoprune.search(run_dir=searched.folder.path, events=notes, measurer=measurer)
    assert any("dropped" in note and "the loss is nan" in note for note in notes.of(digest))
    assert digest not in {m.digest for m in [*again.models, *again.others]}


def test_a_fine_tune_that_is_undone_is_said(
    searched: autoprune.Run, measurer: SimulatedMeasurer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda self, spec: dataclasses.replace(honest(self, spec), undone=True))
    again = autoprune.search(run_dir=searched.folder.path, events=notes, measurer=measurer)
    undone = {note.partition(":")[0] for note in notes.of("the repaired model is kept")}
    assert undone == {m.digest for m in everything(again)} > set()


def test_a_candidate_that_misses_when_measured_is_not_fine_tuned_and_the_next_is_taken(
    searched: autoprune.Run, measurer: SimulatedMeasurer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = next(m for m in [*searched.models, *searched.others] if m.strategy != "uniform")
    slow(measurer, candidate.policy.widths, 2.0)
    monkeypatch.setattr("autoprune.pipeline.exploration.corrected_costs", lambda *_: None)
    again = autoprune.search(run_dir=searched.folder.path, events=notes, measurer=measurer)
    assert notes.of("over their budget when measured; the next best took their place")
    assert candidate.digest not in {m.digest for m in [*again.models, *again.others] if m.strategy != "uniform"}
    ratios = read_json(again.folder.measured)["ratios"]
    assert ratios[candidate.digest] == pytest.approx(2.0 * candidate.latency_ratio, rel=0.02)
    taken = {m.budget for m in everything(again) if m.strategy != "uniform"}
    assert candidate.budget in taken, "the next one"


def test_a_last_candidate_that_misses_is_reported_and_the_next_is_taken(
    searched: autoprune.Run, measurer: SimulatedMeasurer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = next(m for m in [*searched.models, *searched.others] if m.strategy != "uniform")
    slow(measurer, candidate.policy.widths, 2.0)
    monkeypatch.setattr("autoprune.pipeline.exploration.corrected_costs", lambda *_: None)
    monkeypatch.setattr(
        "autoprune.pipeline.exploration._MeasuredCandidates.meets", lambda self, policies, _: [True] * len(policies)
    )
    again = autoprune.search(run_dir=searched.folder.path, events=notes, measurer=measurer)
    assert notes.of(f"{candidate.digest} misses {candidate.budget} when measured (")
    assert candidate.digest not in {m.digest for m in [*again.models, *again.others] if m.strategy != "uniform"}


def test_predictions_that_are_wrong_make_the_table_be_corrected_and_the_search_go_on(
    searched: autoprune.Run, notes: Notes
) -> None:
    folder = searched.folder
    before = LatencyTable.load(folder.table)
    trials_before = len([row for row in study_rows(folder) if row[0] == "rung-0"])
    # Narrow first layers are slower than the profile saw.
    measurer = SimulatedMeasurer(slowness=lambda widths: 1.08 if widths["features.0"] < 32 else 1.0)
    again = autoprune.search(run_dir=folder.path, events=notes, measurer=measurer)
    table = LatencyTable.load(folder.table)
    assert notes.of("the latency table is fitted again")
    assert 1 <= table.refits <= 2
    asked = measurer.asked[0]
    assert table.counts["candidate"] >= len(asked)
    structure = again.dense_model.structure
    policies = [dataclasses.replace(again.models[0].policy, widths=row) for row in asked]
    was, now = (t.predictor(structure).predict(policies) for t in (before, table))
    assert now.mean() > was.mean() * 1.01
    assert len([row for row in study_rows(folder) if row[0] == "rung-0"]) > trials_before, "another plan"
    for model in again.models:
        assert model.latency_ms_predicted == pytest.approx(table.predictor(structure).predict([model.policy])[0])
    assert again.document["latency_table"]["refits"] == table.refits


def test_a_run_that_was_finishing_is_not_searched_on_in_a_busy_moment(
    copied: autoprune.Run, measurer: SimulatedMeasurer
) -> None:
    digest = copied.models[0].digest
    copied.folder.front.unlink()
    shutil.rmtree(copied.folder.model(digest).path)
    optuna.delete_study(study_name="rung-3", storage=f"sqlite:///{copied.folder.study}")
    measurer.slowness = lambda widths: 1.08
    autoprune.search(run_dir=copied.folder.path, budgets=["80%", "65%"], measurer=measurer)
    assert LatencyTable.load(copied.folder.table).refits == 0


def test_test_data_that_cannot_be_scored_are_told_before_the_search(
    copied: autoprune.Run, measurer: SimulatedMeasurer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = OPTIONS | {"dense": str(copied.folder.dense), "table": str(copied.folder.table)}

    def failing(*_: object, **__: object) -> None:
        raise TrialError("the metric is nan")

    monkeypatch.setattr("autoprune.pipeline.verification.evaluate", failing)
    with pytest.raises(TrialError, match="on the test data: the metric is nan"):
        autoprune.search(SPEC, run_dir=tmp_path / "run", measurer=measurer, **options)
    assert not RunFolder(tmp_path / "run").has_study


def test_a_budget_that_no_model_meets_is_told(
    searched: autoprune.Run, measurer: SimulatedMeasurer, notes: Notes
) -> None:
    """The device is slower, when candidates are measured, than any prediction within the tighter budget."""
    tight = searched.document["budgets"][-1]
    measurer.slowness = lambda widths: max(1.0, 0.7 / _share(measurer, widths))
    again = autoprune.search(run_dir=searched.folder.path, events=notes, measurer=measurer)
    assert again.document["unmet_budgets"] == [tight]
    assert notes.of(f"no fine-tuned model meets {tight}")
    assert {m.budget for m in again.models} == {searched.document["budgets"][0]}


def _share(measurer: SimulatedMeasurer, widths: Mapping[str, int]) -> float:
    machine = measurer.machine(measurer.structure)
    return float(machine.ratios(np.array([[widths[unit.name] for unit in measurer.structure.units]]))[0])


def test_a_measurer_that_fails_ends_the_call_and_leaves_a_run_that_goes_on(
    searched: autoprune.Run, measurer: SimulatedMeasurer
) -> None:
    rows = study_rows(searched.folder)
    measurer.error = LatencyError("the board does not answer")
    with pytest.raises(LatencyError, match="the board does not answer"):
        autoprune.search(run_dir=searched.folder.path, measurer=measurer)
    assert study_rows(searched.folder) == rows
    measurer.error = None
    again = autoprune.search(run_dir=searched.folder.path, measurer=measurer)
    assert {m.digest for m in everything(again)} == {m.digest for m in everything(searched)}


def test_int8_goes_from_the_search_to_a_verified_file(copied: autoprune.Run, tmp_path: Path) -> None:
    """Quantized by ONNX Runtime, scored as it will be deployed; the clock alone is simulated."""
    measurer = SimulatedMeasurer(make_target("ort-cpu", precision="int8"))
    options = OPTIONS | {"budgets": ["80%"], "trials": 4, "strategy": "uniform", "precision": "int8"}
    run = autoprune.search(SPEC, run_dir=tmp_path / "run", dense=str(copied.folder.dense), measurer=measurer, **options)
    best = run.pick(knee=True)
    assert best.onnx_path.name == "model.int8.onnx"
    full = run.folder.model(best.digest).onnx
    assert best.onnx_path.stat().st_size < full.stat().st_size
    assert run.document["latency_table"]["target"]["precision"] == "int8"
    assert len(measurer.asked[-1]) == 1
    assert measurer.asked[-1][0] == dict(best.record.policy.widths), "the int8 file was measured"
    assert best.record.test_score is not None
    assert best.record.test_score > 0.5
    assert best.export(tmp_path / "best.onnx").read_bytes() == best.onnx_path.read_bytes()


def test_the_real_device_measures_when_nothing_else_is_given(searched: autoprune.Run) -> None:
    run = autoprune.search(run_dir=searched.folder.path, budgets=["bytes:90%"])  # met by any machine, however busy
    assert everything(run)
    for model in everything(run):
        assert model.latency_ms_measured is not None
        assert model.latency_ms_measured != pytest.approx(model.latency_ms_predicted, rel=1e-6)


@pytest.mark.parametrize(("budget", "now_ms", "said"), [("1ms", 2.4, "+20%"), ("1ms", 2.02, ""), ("50%", 2.4, "")])
def test_milliseconds_are_doubted_when_the_clock_has_changed(budget: str, now_ms: float, said: str) -> None:
    lines = clock_notes([budget], 2.0, [{"samples": {"dense": {"median_ms": now_ms}}}])
    assert [said in line for line in lines] == ([True] if said else [])


def test_a_slower_clock_beside_the_models_is_noted(searched: autoprune.Run, notes: Notes) -> None:
    measurer = SimulatedMeasurer()
    measurer.clock = 1.5
    half = f"{0.8 * searched.document['dense']['latency_ms_measured']:.6f}ms"
    autoprune.search(run_dir=searched.folder.path, budgets=[half], events=notes, measurer=measurer)
    assert notes.of("against the latency table, on whose clock budgets in milliseconds are judged")


def test_nothing_runs_while_latency_is_measured(
    searched: autoprune.Run, measurer: SimulatedMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    def slowness(widths: Mapping[str, int]) -> float:
        seen.append(running)
        return 1.0

    measurer.slowness = slowness
    monkeypatch.setattr(InlineExecutor, "submit", submitting)
    monkeypatch.setattr(InlineExecutor, "wait", waiting)
    autoprune.search(run_dir=searched.folder.path, measurer=measurer)
    assert len(seen) >= 2
    assert set(seen) == {0}


@pytest.mark.parametrize(("strategy", "sampler"), [("direct", "gp"), ("direct", "tpe"), ("guided", "gp")])
def test_a_sampler_that_cannot_keep_up_is_pointed_out(
    copied: autoprune.Run, notes: Notes, monkeypatch: pytest.MonkeyPatch, strategy: str, sampler: str
) -> None:
    shutil.rmtree(copied.folder.path / "models")
    (copied.folder.path / "study.db").unlink()
    monkeypatch.setattr(
        "autoprune.pipeline.exploration.run_search", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        autoprune.search(run_dir=copied.folder.path, strategy=strategy, sampler=sampler, events=notes)
    pointed_out = any("--sampler tpe" in note for note in notes.of("the gp sampler"))
    assert pointed_out == ((strategy, sampler) == ("direct", "gp"))
