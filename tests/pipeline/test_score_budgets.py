"""Budgets by score: which latency is searched next, and what a run answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import autoprune
from autoprune.budgets import ScoreBudget
from autoprune.cli import main as cli
from autoprune.config import RunConfig
from autoprune.pipeline import score_budgets, time_limit
from autoprune.pipeline.score_budgets import MOST_LATENCIES, ScoreSearch, next_budgets
from autoprune.records import Policy
from autoprune.report import score_budget_lines
from autoprune.runfolder import read_json
from autoprune.trials import FrontModel
from tests.conftest import QUICK, SPEC
from tests.measurers import SimulatedMeasurer

ONE_PERCENT = ScoreBudget.parse("score:-1%")


NOISE = 1.004
"""A model may measure a little more than its budget."""


def model(budget: str, ratio: float, score: float) -> FrontModel:
    policy = Policy(space_id="", widths={"u": round(1000 * ratio)})
    sizes = {"params": 1, "macs": 1, "bytes": 4}
    return FrontModel(
        digest=policy.digest(), policy=policy, score=score, test_score=score, latency_ms_predicted=ratio,
        latency_ms_measured=ratio, latency_ratio=ratio, **sizes, fidelity="full", strategy="guided", onnx="",
        budget=budget,
    )  # fmt: skip


def searched(score_of: Callable[[float], float], least: float, floor: float) -> tuple[list[float], float | None]:
    """Search latencies, each of which gives a model of `score_of` it; return them and the latency of the answer."""
    search = ScoreSearch(budget=ONE_PERCENT, least=least, floor=floor)
    latencies = {"50%": 0.5}
    models = [model("50%", NOISE * 0.5, score_of(0.5))]
    while more := next_budgets([search], 1, latencies, models):
        (budget,) = more
        ratio = budget.bounds[0].number / 100
        latencies[str(budget)] = ratio
        models.append(model(str(budget), NOISE * ratio, score_of(ratio)))
    answer = search.answer(models)
    return list(latencies.values()), answer.latency_ratio if answer else None


@pytest.mark.parametrize("edge", [0.15, 0.24, 0.4, 0.48, 0.62, 0.85])
def test_the_fastest_model_that_keeps_the_score_is_narrowed_down(edge: float) -> None:
    latencies, answer = searched(lambda ratio: 0.9 if ratio >= edge else 0.5, least=0.89, floor=0.05)
    assert answer is not None
    assert edge <= answer < 1.12 * edge
    assert len(latencies) <= 1 + MOST_LATENCIES


def test_a_score_that_all_keep_leads_to_the_floor_and_one_that_none_keeps_to_no_answer() -> None:
    latencies, answer = searched(lambda ratio: 0.9, least=0.89, floor=0.2)
    assert answer is not None
    assert answer < 1.08 * 0.2
    assert min(latencies) > 0.2
    latencies, answer = searched(lambda ratio: 0.5, least=0.89, floor=0.2)
    assert answer is None
    assert max(latencies) > 0.85


def test_other_budgets_are_searched_first_and_their_limits_hold_at_every_latency() -> None:
    config = RunConfig(budgets=("60%", "bytes:1MB", "score:-1%"))
    assert [str(budget) for budget in config.parsed_budgets()] == ["60%,bytes:1MB"]
    (alone,) = RunConfig(budgets=("score:0.9", "bytes:1MB")).parsed_budgets()
    assert alone.timed
    assert str(config.with_untimed(alone)).count("bytes:1MB") == 1


def test_a_run_answers_with_the_fastest_model_that_keeps_the_score(
    finished: autoprune.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score_budgets, "MOST_LATENCIES", 2)
    monkeypatch.setattr(time_limit, "_FULL_SHARES", (0.5,))  # the first latency shortens the full fine-tunes of all
    known = {"table": str(finished.folder.table), "dense": str(finished.folder.dense)}
    options = QUICK | known | {"budgets": ["score:-30%"], "max_minutes": 10}
    run = autoprune.search(SPEC, run_dir=tmp_path / "run", measurer=SimulatedMeasurer(), **options)
    document = read_json(run.folder.front)
    (entry,) = document["score_budgets"]
    verified = [*document["models"], *document["others"], *document["baselines"]]
    keeping = [m["latency_ratio"] for m in verified if m["score"] >= 0.7 * document["dense"]["score"]]
    assert entry["latency_ratio"] == min(keeping)
    assert entry["least_score"] == pytest.approx(0.7 * document["dense"]["score"])
    low, high = entry["score_interval"]
    assert low < entry["score"] < high
    assert len({m["budget"] for m in verified}) > 1, "further latencies were searched"
    assert document["unmet_budgets"] == []
    assert entry["digest"] in score_budget_lines(document)[0]
    capsys.readouterr()
    cli.app(["pick", str(run.folder.path), "--max-drop", "30%"], standalone_mode=False)
    picked = json.loads(capsys.readouterr().out)
    assert (picked["asked_budget"], picked["budget"][-1]) == ("score:-30%", "%")
    cli.app(["front", str(run.folder.path)], standalone_mode=False)
    assert f"score:-30% ({picked['budget']}): " in capsys.readouterr().out
    again = autoprune.search(run_dir=run.folder.path, measurer=SimulatedMeasurer())
    assert read_json(again.folder.front)["score_budgets"] == [entry], "a run that is called again answers the same"
