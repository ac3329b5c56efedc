from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import optuna
import pytest
import torch

import autoprune
from autoprune.errors import BudgetError, CallbackError, LatencyError, RunFolderError, UsageError
from autoprune.latency.table import LatencyTable
from autoprune.runfolder import RunFolder
from autoprune.trackers import Tracker
from autoprune.trials import FinishedTrial
from tests.conftest import OPTIONS, QUICK, SPEC
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny

search = partial(autoprune.search, measurer=SimulatedMeasurer())

FRONT_KEYS = {
    "digest", "policy", "score", "test_score", "latency_ms_predicted", "latency_ms_measured", "latency_ratio",
    "params", "macs", "bytes", "activation_bytes", "fidelity", "onnx",
}  # fmt: skip


def study_rows(folder: RunFolder) -> list[tuple]:
    with sqlite3.connect(folder.study) as database:
        query = "select s.study_name, t.number, t.state from trials t join studies s using (study_id) order by 1, 2"
        return database.execute(query).fetchall()


def test_the_front_file_is_what_others_rely_on(finished: autoprune.Run) -> None:
    document = json.loads(finished.folder.front.read_text())
    assert document["schema"] == 1
    assert document["metric"] == "accuracy"
    assert {"score", "test_score", "latency_ms_measured", "params", "macs", "bytes", "activation_bytes"} <= set(
        document["dense"]
    )
    assert document["models"]
    for model in document["models"]:
        assert set(model) >= FRONT_KEYS
        assert model["policy"].keys() == {"features.0", "features.3", "features.7"}
        assert (finished.folder.path / model["onnx"]).is_file()
        assert model["latency_ratio"] == pytest.approx(_ratio(model["policy"]), rel=1e-9), (
            "as measured, not as predicted"
        )
        assert model["params"] < document["dense"]["params"]


def _ratio(widths: dict[str, int]) -> float:
    """What the simulated device takes for a policy, as a share of the dense model."""
    measurer = SimulatedMeasurer()
    machine = measurer.machine(measurer.structure)
    row = [widths[unit.name] for unit in measurer.structure.units]
    return float(machine.ms(np.array([row]))[0]) / machine.dense_ms


def test_every_front_has_its_uniform_baselines(finished: autoprune.Run) -> None:
    assert {m.budget for m in finished.baselines} == {"80%", "65%"}
    assert all(m.strategy == "uniform" and m.fidelity == "full" for m in finished.baselines)
    rungs = {(r["rung"], r["budget"], r["strategy"]) for r in finished.document["rungs"]}
    assert {("longer", "65%", "uniform"), ("longer", "65%", "searched"), ("proxy", "80%", "uniform")} <= rungs


def test_the_run_folder_holds_what_it_says(finished: autoprune.Run) -> None:
    names = {path.name for path in finished.folder.path.iterdir()}
    assert names >= {
        "run.yaml",
        "environment.json",
        "dense.safetensors",
        "latency_table.json",
        "study.db",
        "front.json",
    }
    workers = json.loads(finished.folder.environment.read_text())["workers"]
    assert workers == {"executor": "inline", "slots": 1}
    model = finished.folder.model(finished.models[0].digest)
    assert all(p.is_file() for p in (model.policy, model.weights, model.onnx, model.metrics))
    metrics = json.loads(model.metrics.read_text())
    assert metrics["onnx_relative_difference"] <= 1e-4
    ratio = metrics["latency_ms_predicted"] / finished.document["dense"]["latency_ms_measured"]
    assert metrics["prediction_error"] == pytest.approx(ratio / metrics["latency_ratio"] - 1)
    assert 0 < abs(metrics["prediction_error"]) < 0.03
    assert not list(finished.folder.path.rglob("*.tmp"))


def test_sensitivities_say_at_which_widths_they_were_measured(finished: autoprune.Run) -> None:
    document = json.loads(finished.folder.sensitivity.read_text())
    for name, divergence in document["divergence"].items():
        widths = [int(width) for width in divergence]
        assert document["measured"][name]
        assert set(document["measured"][name]) < set(widths)
        assert min(document["measured"][name]) == min(widths)


def test_a_reloaded_model_is_smaller_and_equals_its_onnx(finished: autoprune.Run, tmp_path: Path) -> None:
    best = autoprune.Run.open(finished.folder.path).pick(min_score=0.0)
    model = best.model()
    assert sum(p.numel() for p in model.parameters()) == best.record.params
    x = tiny.make_task().val_set.tensors[0][:5]  # pyright: ignore[reportAttributeAccessIssue]
    session = onnxruntime.InferenceSession(best.export(tmp_path / "out" / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(np.asarray(found), model(x).numpy(), rtol=1e-3, atol=1e-4)


def test_front_and_pick(finished: autoprune.Run) -> None:
    frame = finished.front(baselines=True)
    assert len(frame) == len(finished.models) + len(finished.baselines)
    assert frame["latency_ms_measured"].is_monotonic_increasing
    fastest = finished.models[0]
    assert finished.pick(max_latency_ms=fastest.latency_ms_measured).digest == fastest.digest
    assert finished.candidate(fastest.digest[:6]).digest == fastest.digest
    with pytest.raises(UsageError, match="no model takes at most"):
        finished.pick(max_latency_ms=1e-9)
    with pytest.raises(UsageError, match="names 0 models"):
        finished.candidate("zzz")


def test_the_same_call_again_changes_nothing(copied: autoprune.Run) -> None:
    before, front = study_rows(copied.folder), copied.folder.front.read_text()
    again = search(run_dir=copied.folder.path)
    assert study_rows(again.folder) == before
    assert again.folder.front.read_text() == front


class Recorder(Tracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def begin(self, run_dir: Path, config: Any) -> None:
        self.told.append(("begin", config))

    def trial(self, trial: FinishedTrial) -> None:
        self.told.append(("trial", trial))

    def finish(self, document: Any) -> None:
        self.told.append(("finish", document))

    def close(self) -> None:
        self.told.append(("close", None))


def test_a_run_interrupted_after_the_search_goes_on(copied: autoprune.Run) -> None:
    digest = copied.models[0].digest
    copied.folder.front.unlink()
    shutil.rmtree(copied.folder.model(digest).path)
    optuna.delete_study(study_name="rung-3", storage=f"sqlite:///{copied.folder.study}")
    told: list[FinishedTrial] = []

    def broken(trial: FinishedTrial) -> None:
        told.append(trial)
        raise KeyError("no such column")

    with pytest.raises(CallbackError, match=r"callback on_trial \(.*broken\) failed: KeyError: 'no such column'"):
        search(run_dir=copied.folder.path, on_trial=broken)
    tracker = Recorder()
    again = search(run_dir=copied.folder.path, on_trial=told.append, events=[tracker, Recorder()])
    assert {m.digest for m in again.models} | {m.digest for m in again.others} >= {digest}
    assert again.folder.model(digest).onnx.is_file()
    fine_tuned = [m.digest for m in [*again.models, *again.baselines, *again.others]]
    assert sorted(trial.digest for trial in told) == sorted(set(fine_tuned)), "no trial is told twice, none is lost"
    assert {trial.rung for trial in told} == {"full"}
    assert all(trial.score is not None and trial.bytes and trial.seconds > 0 for trial in told)
    names = [name for name, _ in tracker.told]
    assert (names[0], names[-2:]) == ("begin", ["finish", "close"])
    assert tracker.told[-2][1]["models"] == again.document["models"]


def test_a_budget_below_the_floor_states_it_and_may_be_changed(copied: autoprune.Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "low")
    shutil.copytree(copied.folder.path, folder.path)
    for name in ("study.db", "front.json"):
        (folder.path / name).unlink()
    with pytest.raises(BudgetError, match=r"the budget 1% .* cannot be reached: the smallest policy .* % of dense|%"):
        search(run_dir=folder.path, budgets=["1%"])
    assert (folder.read_config() or {})["budgets"] == OPTIONS["budgets"], "what cannot work is not kept"
    assert search(run_dir=folder.path, **OPTIONS).models


def test_other_budgets_are_another_study_that_begins_with_what_is_known(copied: autoprune.Run) -> None:
    before = study_rows(copied.folder)
    again = search(run_dir=copied.folder.path, budgets=["75%"])
    assert {model.budget for model in again.models} == {"75%"}
    assert all(model.meets_budget for model in again.models)
    after = study_rows(copied.folder)
    assert {row for row in after if row[0] in {name for name, *_ in before}} == set(before), "nothing was changed"
    with sqlite3.connect(copied.folder.study) as database:
        query = """select s.study_name, count(*) from trial_user_attributes a join trials t using (trial_id)
            join studies s using (study_id) where a.key = 'result' and a.value_json like '%"done"%' group by 1"""
        found = dict(database.execute(query).fetchall())
        policies = """select count(distinct a.value_json) from trial_user_attributes a join trials t using (trial_id)
            join studies s using (study_id) where s.study_name = 'rung-0.2' and a.key = 'digest'"""
        (distinct,) = database.execute(policies).fetchone()
    assert found["rung-0.2"] >= found["rung-0"]
    assert distinct == found["rung-0.2"], "no policy was scored twice"
    back = search(run_dir=copied.folder.path, budgets=OPTIONS["budgets"])
    assert {m.digest for m in back.models} == {m.digest for m in copied.models}


def test_a_task_object_runs_in_this_process(copied: autoprune.Run, tmp_path: Path) -> None:
    task = tiny.make_task()
    run = search(task, run_dir=tmp_path / "object", table=str(copied.folder.table), **QUICK)
    assert [m.strategy for m in run.models] == ["uniform"]
    with pytest.raises(UsageError, match="pass it again"):
        _ = autoprune.Run.open(run.folder.path).dense_model
    assert autoprune.Run.open(run.folder.path, task).pick(knee=True).model()(task.example_inputs[0]).shape == (1, 10)


def test_a_damaged_weight_file_is_named(copied: autoprune.Run) -> None:
    copied.folder.dense.write_bytes(b"torn")
    with pytest.raises(RunFolderError, match=r"dense.safetensors is not the file that this run wrote"):
        search(run_dir=copied.folder.path)


@pytest.mark.parametrize("change", [{"score": 0.123}, {"score": 0.123, "weights_sha256": "of other weights"}])
def test_metrics_that_were_changed_are_not_trusted(copied: autoprune.Run, change: dict[str, Any]) -> None:
    files = copied.folder.model(copied.models[0].digest)
    metrics = json.loads(files.metrics.read_text())
    files.metrics.write_text(json.dumps(metrics | change))
    again = search(run_dir=copied.folder.path).candidate(copied.models[0].digest)
    assert again.record.score == metrics["score"]


def test_a_changed_space_file_does_not_cost_the_table(copied: autoprune.Run, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("multiple_of: 16\n")
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(copied.folder.path, folder.path)
    for name in ("study.db", "front.json"):
        (folder.path / name).unlink()
    options = {"space": str(space), "budgets": ["80%"], "strategy": "uniform"}
    search(run_dir=folder.path, **options)
    table = folder.table.read_bytes()
    space.write_text("multiple_of: 8\n")
    with pytest.raises(RunFolderError, match="was changed since this search began"):
        search(run_dir=folder.path)
    assert folder.table.read_bytes() == table


def test_a_table_of_another_device_decides_by_prediction_alone(copied: autoprune.Run, tmp_path: Path) -> None:
    table = LatencyTable.load(copied.folder.table)
    foreign = dataclasses.replace(table, target=dict(table.target) | {"cpu": "another"})
    foreign.save(tmp_path / "foreign.json")
    options = QUICK | {"dense": str(copied.folder.dense), "table": str(tmp_path / "foreign.json")}
    with pytest.raises(LatencyError, match=r"cpu: .* here, 'another' there"):
        search(SPEC, run_dir=tmp_path / "run", **options)
    run = search(SPEC, run_dir=tmp_path / "run", allow_foreign_table=True, **options)
    assert run.models
    for model in [*run.models, *run.others, *run.baselines]:
        assert model.latency_ms_measured is None
        assert model.latency_ratio == pytest.approx(model.latency_ms_predicted / table.dense_ms)
    assert run.pick(max_latency_ms=table.dense_ms).record.digest
    assert any("cpu" in difference for difference in run.document["latency_table"]["foreign"])


def test_weights_that_are_torn_are_made_anew(copied: autoprune.Run) -> None:
    digest = copied.models[0].digest
    weights = copied.folder.model(digest).weights
    before = weights.read_bytes()
    weights.write_bytes(before[: len(before) // 2])
    rows = study_rows(copied.folder)
    search(run_dir=copied.folder.path)
    assert weights.read_bytes() == before
    assert study_rows(copied.folder) == rows
