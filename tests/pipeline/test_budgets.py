"""Budgets of other costs than latency, from the command line's text to `front.json`."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import autoprune
from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.errors import BudgetError
from autoprune.pipeline.events import Silent
from autoprune.pipeline.preparation import Prepared, prepare
from autoprune.report import RunView, front_table, write_report
from tests.conftest import OPTIONS, SPEC
from tests.measurers import SimulatedMeasurer

Search = Callable[..., autoprune.Run]


@pytest.fixture
def searched(finished: autoprune.Run, tmp_path: Path) -> Search:
    """Search in a new folder with the latency table and the dense model of the finished run."""

    def run(*budgets: str, **options: Any) -> autoprune.Run:
        known = {"table": str(finished.folder.table), "dense": str(finished.folder.dense), "trials": 6}
        options = OPTIONS | known | {"budgets": budgets} | options
        return autoprune.search(SPEC, run_dir=tmp_path / "run", measurer=SimulatedMeasurer(), **options)

    return run


@pytest.fixture
def prepared(copied: autoprune.Run, measurer: SimulatedMeasurer) -> Prepared:
    return prepare(copied.config, copied.folder, copied.open_task(), Silent(), measurer)


def shown(document: dict[str, Any], path: Path) -> tuple[str, str]:
    """The front as the console and the HTML page show it."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(front_table(document))
    config = {"task": "t", "target": "ort-cpu", "strategy": "direct", "threads": 1, "batch": 1, "seed": 0}
    run = RunView(path=path, config=config, document=document)
    return console.export_text(), write_report([run], path / "report.html").read_text()


def test_a_limit_on_weight_bytes_holds_beside_every_latency(searched: Search, tmp_path: Path) -> None:
    run = searched("80%", "65%", "bytes:40%,activation_bytes:90%")
    document = json.loads(run.folder.front.read_text())
    dense = document["dense"]
    entries = [*document["models"], *document["others"], *document["baselines"]]
    names = {f"{latency},bytes:40%,activation_bytes:90%" for latency in ("80%", "65%")}
    assert {m["budget"] for m in entries} == names == {row["budget"] for row in document["rungs"]}
    assert document["models"]
    for model in entries:
        assert model["bytes"] <= 0.4 * dense["bytes"]
        assert model["activation_bytes"] <= 0.9 * dense["activation_bytes"]
        assert model["meets_budget"]
    assert document["models"][0]["bytes"] == run.dense_model.sizes(run.models[0].policy)["bytes"]
    console, page = shown(document, tmp_path)
    budget = document["models"][0]["budget"]
    assert all(text in console for text in (budget, "activations", f"{dense['bytes'] / 1e3:.3g} kB"))
    assert all(text in page for text in (budget, "peak of activations", f"{document['models'][0]['macs']:,}"))
    assert run.front()["activation_bytes"].tolist() == [m["activation_bytes"] for m in document["models"]]


def test_the_page_says_whether_latencies_were_measured(copied: autoprune.Run, tmp_path: Path) -> None:
    document = json.loads(copied.folder.front.read_text())
    _, page = shown(document, tmp_path)
    assert "Every latency was measured beside the dense model" in page
    for entry in [*document["models"], *document["others"], *document["baselines"]]:
        entry["latency_ms_measured"] = None
    _, page = shown(document, tmp_path)
    assert "Every latency was predicted" in page
    assert "measured latency, ms" not in page
    _, page = shown(document | {"unmet_budgets": ["10%"]}, tmp_path)
    assert "No fine-tuned model meets 10%." in page


def test_a_budget_that_no_policy_meets_names_every_floor(searched: Search) -> None:
    message = (
        r"the budget 80%,bytes:1kB \(at most .* [mu]s, 1,000 bytes\) cannot be reached: "
        r"the smallest policy of the space takes .* [mu]s, [\d,]+ bytes, [\d.]+%, [\d.]+% of the largest"
    )
    with pytest.raises(BudgetError, match=message):
        searched("80%", "bytes:1kB")


def test_latency_is_met_within_noise_and_all_else_exactly(prepared: Prepared, copied: autoprune.Run) -> None:
    policy = copied.models[0].policy
    bytes_ = prepared.dense_model.sizes(policy)["bytes"]
    half_ms = prepared.costs.dense_ms / 2

    def met(ratio: float, most: float) -> bool:
        limits = {"b": Limit.of(latency_ms=half_ms, bytes=most)}
        return dataclasses.replace(prepared.costs, limits=limits).meets("b", policy, ratio)

    assert met(0.5, bytes_)
    assert met(0.504, bytes_)
    assert not met(0.506, bytes_)
    assert not met(0.5, bytes_ - 1)


def test_the_dense_model_fits_its_own_costs(prepared: Prepared) -> None:
    dense_costs = prepared.costs.dense_costs
    assert dense_costs[0] == prepared.costs.table.dense_ms
    assert fits(dense_costs, Limit(most=dense_costs))
    sizes = prepared.dense_model.sizes(prepared.dense_model.structure.dense_policy())
    assert dense_costs[1:] == tuple(sizes.values())


def test_a_budget_of_an_earlier_call_is_judged_by_all_that_it_limits(prepared: Prepared, copied: autoprune.Run) -> None:
    policy = copied.models[0].policy
    assert prepared.costs.meets("100%,bytes:90%", policy, 0.5)
    assert not prepared.costs.meets("100%,bytes:1kB", policy, 0.5)


def test_a_run_from_before_activations_were_counted_can_be_read(copied: autoprune.Run, tmp_path: Path) -> None:
    document = json.loads(copied.folder.front.read_text())
    for entry in [document["dense"], *document["models"], *document["others"], *document["baselines"]]:
        del entry["activation_bytes"]
    copied.folder.front.write_text(json.dumps(document))
    copied.folder.manifest.unlink()
    run = autoprune.Run.open(copied.folder.path)
    assert run.pick(knee=True).record.activation_bytes is None
    assert all(run.models[0].digest in text for text in shown(document, tmp_path))
