from __future__ import annotations

import pytest

import autoprune
from autoprune.budgets import Limit
from autoprune.errors import UsageError
from autoprune.pipeline.picking import cost_limit, least_score

DENSE = {"score": 0.9, "latency_ms_measured": 2.0, "bytes": 1000, "params": 250, "macs": 9, "activation_bytes": None}


@pytest.mark.parametrize(
    ("amounts", "limit"),
    [
        ({"latency": "50%"}, Limit.of(latency_ms=1.01)),
        ({"latency": "800us"}, Limit.of(latency_ms=0.808)),
        ({"latency": 1}, Limit.of(latency_ms=1.01)),
        ({"bytes": "0.5kB"}, Limit.of(bytes=500)),
        ({"bytes": 300, "params": "20%"}, Limit.of(bytes=300, params=50)),
        ({"activation_bytes": "bytes:1kB"}, "a limit on activation_bytes"),
        ({"latency": "bytes:1MB"}, "a limit on latency .* got 'bytes:1MB'"),
        ({"macs": 0}, "above 0"),
        ({"latency": "1.2"}, "units %, ms, us, s"),
        ({"activation_bytes": "50%"}, "does not know the activation_bytes"),
        ({"bytes": None}, None),
    ],
)
def test_limits_are_written_as_budgets_are(amounts: dict, limit: object) -> None:
    if isinstance(limit, str):
        with pytest.raises(UsageError, match=limit):
            cost_limit(DENSE, amounts)
        return
    made = cost_limit(DENSE, amounts)
    assert made == limit if made is None else made.to_json() == pytest.approx(limit.to_json())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("drop", "least"), [(0.01, 0.89), ("0.01", 0.89), ("1%", 0.891), (0, 0.9), ("100%", 0.0), (None, 0.5)]
)
def test_a_drop_is_below_the_dense_score(drop: str | float | None, least: float) -> None:
    assert least_score(0.9, 0.5, drop) == pytest.approx(max(least, 0.5))
    assert least_score(-2.0, None, "10%") == pytest.approx(-2.2)
    assert least_score(0.9, None, None) is None


@pytest.mark.parametrize("drop", ["-1%", -0.1, "much", True, float("nan"), "inf", [0.1]])
def test_other_drops_are_refused(drop: object) -> None:
    with pytest.raises(UsageError, match=r"as in 0.01, or 1% of the dense score; got"):
        least_score(0.9, None, drop)  # type: ignore[arg-type]


def test_python_picks_as_the_command_line_does(finished: autoprune.Run) -> None:
    best = max(finished.models, key=lambda m: m.score)
    dense = finished.document["dense"]
    assert finished.pick(max_drop="100%", max_latency="100%").digest == best.digest
    assert (
        finished.pick(max_bytes="100%", max_latency_ms=finished.models[0].latency_ms_measured).record
        == (finished.models[0])
    )
    assert finished.pick(max_drop=dense["score"] - best.score).record.score >= best.score
    with pytest.raises(UsageError, match=r"no model takes at most .* us, 4 bytes; the nearest"):
        finished.pick(max_latency="50%", max_bytes=4)
    with pytest.raises(UsageError, match="say which"):
        finished.pick()


@pytest.mark.parametrize(
    ("name", "meant"),
    [("budget", "budgets"), ("event", "events"), ("worker", "workers"), ("config_fil", "config_file")],
)
def test_an_unknown_option_of_a_search_names_the_nearest(tmp_path, name: str, meant: str) -> None:
    for call in (autoprune.search, autoprune.prepare):
        with pytest.raises(UsageError, match=f"unknown option '{name}'. Did you mean '{meant}'"):
            call("digits", run_dir=tmp_path / "run", **{name: ["50%"]})
    assert not (tmp_path / "run").exists()
