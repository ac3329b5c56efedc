"""Budgets that limit no latency: no table is measured, and nothing that was not measured is shown."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import autoprune
from autoprune.config import RunConfig
from autoprune.latency.stand_in import MacsPredictor, StandInTable
from autoprune.pipeline.tables import stand_in_table
from autoprune.report import front_table, prediction_line, write_report
from autoprune.report.runview import read_run
from autoprune.runfolder import RunFolder
from autoprune.structure import Structure, analyze
from autoprune.trials import FinishedTrial
from tests.conftest import QUICK, SPEC
from tests.hosts import OVERFLOWS
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({"budgets": ["bytes:1MB"]}, False),
        ({"budgets": ["params:50%", "macs:40%"]}, False),
        ({"budgets": ["bytes:1MB,50%"]}, True),
        ({"budgets": ["bytes:1MB", "50%"]}, True),
        ({"budgets": ["score:-1%", "bytes:1MB"]}, True),
        ({"budgets": ["bytes:1MB"], "measure_table": True}, True),
        ({"budgets": ["bytes:1MB"], "table": "t.json"}, True),
        ({"budgets": ["bytes:1MB"], "strategy": "netadapt"}, True),
    ],
)
def test_when_a_search_needs_latencies(options: dict, needs: bool) -> None:
    assert RunConfig(**options).needs_latency == needs


@pytest.mark.parametrize("alike", [True, False])
def test_a_run_that_goes_on_where_int8_computes_otherwise_says_so(alike: bool, tmp_path: Path) -> None:
    structure, measurer, folder = (
        analyze(tiny.Net(), (torch.zeros(1, 1, 8, 8),)),
        SimulatedMeasurer(),
        RunFolder(tmp_path),
    )
    isa = ["avx2"] if alike == OVERFLOWS else ["avx2", "avx_vnni"]
    target = measurer.target.fingerprint() | {"isa": isa, "cpu": "first"}
    StandInTable(target=target, created="", dense_ms=1.0, noise=0.0, layers=()).save(folder.dense_latency)
    notes: list[str] = []
    space: Any = None
    events: Any = SimpleNamespace(note=notes.append)
    stand_in_table(folder, structure, space, measurer, 0, events)
    assert sum("the device that the run began on, first" in note for note in notes) == (not alike)


def test_the_stand_in_orders_by_macs_and_sums_its_parts(finished: autoprune.Run, tmp_path: Path) -> None:
    structure: Structure = finished.dense_model.structure
    table = StandInTable(target={"name": "t"}, created="now", dense_ms=2.0, noise=0.01, layers=())
    table.save(tmp_path / "dense_latency.json")
    assert StandInTable.load(tmp_path / "dense_latency.json") == table
    predictor: MacsPredictor = table.predictor(structure)
    policies = [structure.dense_policy(), *(m.policy for m in finished.models)]
    rows = structure.rows(policies, ())
    predicted = predictor.predict(policies)
    assert predicted[0] == pytest.approx(2.0)
    np.testing.assert_allclose(predicted, 2.0 * structure.macs(rows) / structure.macs(rows[:1]))
    np.testing.assert_allclose(sum(cost(rows) for _, cost in predictor.parts()), predicted)


def test_a_search_without_latency_measures_finished_models_once(finished: autoprune.Run, tmp_path: Path) -> None:
    told, measurer = list[FinishedTrial](), SimulatedMeasurer()
    options = QUICK | {"budgets": ["bytes:40%", "params:20k"], "dense": str(finished.folder.dense), "space": "widths"}
    run = autoprune.search(SPEC, run_dir=tmp_path / "r", measurer=measurer, on_trial=told.append, **options)
    assert not run.folder.table.exists()
    assert told
    assert all(trial.latency_ms_predicted is None for trial in told)
    document = run.document
    dense, (baseline,) = document["dense"], run.baselines
    assert document["cost"] == run.cost == "params"
    assert baseline.budget == "bytes:40%,params:20k", "all limits form one budget"
    assert baseline.meets_budget
    assert baseline.params <= 20_000
    assert baseline.bytes <= 0.4 * dense["bytes"]
    assert max(baseline.params / 20_000, baseline.bytes / (0.4 * dense["bytes"])) > 0.6, "levels are evenly spaced"
    for m in [*run.models, *run.baselines]:
        assert m.latency_ms_predicted is None
        assert m.latency_ms_measured == pytest.approx(m.latency_ratio * dense["latency_ms_measured"])
    asked = [widths for call in measurer.asked for widths in call]
    assert len(asked) == 1 + len({m.digest for m in [*run.models, *run.baselines, *run.others]}), "each once, and dense"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(front_table(document))
    text = console.export_text()
    assert "bytes:40%,params:20k" in text
    assert "predicted" not in text
    assert "models are compared by params" in prediction_line(document)
    view = read_run(run.folder, run.config.model_dump(), run.folder.study)
    assert "models are compared by params" in write_report([view], tmp_path / "page.html").read_text()
    assert run.pick(max_bytes="40%").record == max(run.models, key=lambda m: m.score)
    assert run.front()["latency_ms_predicted"].isna().tolist() == [True] * len(run.models)
    assert run.pick(knee=True).export(tmp_path / "m.onnx").is_file()
