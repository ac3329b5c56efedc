"""One sentence says what a run reached for a budget, and against what."""

from __future__ import annotations

from typing import Any

import pytest

from autoprune.report import headlines, noise_lines

DENSE = {"test_score": 0.987, "latency_ms_measured": 0.179, "bytes": 314_000}


def model(**changes: Any) -> dict[str, Any]:
    return {
        "digest": "158ebc9437ab", "budget": "25%", "strategy": "guided", "meets_budget": True, "score": 0.98,
        "test_score": 0.984, "latency_ms_measured": 0.043, "latency_ratio": 0.24, "bytes": 42_100, **changes,
    }  # fmt: skip


def document(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "dense": DENSE, "metric": "accuracy", "models": models, "others": [], "budgets": ["25%"],
        "baselines": [model(strategy="uniform", test_score=0.969)], "score_examples": {"test": 1000}, **changes,
    }  # fmt: skip


def test_a_model_within_the_noise_of_dense_is_compared_with_dense_and_uniform() -> None:
    worse = model(digest="b", score=0.9, test_score=0.9)
    assert headlines(document(worse, model())) == [
        "At 25 %: 4.2 times as fast as the dense model (43 us instead of 179 us), accuracy 0.9840 instead of 0.9870 on "
        "test data (the dense score lies within the 95 % interval of the model's, 0.9742 to 0.9901); uniform widths "
        "0.9690; model 158ebc9437ab."
    ]


@pytest.mark.parametrize(("score", "place"), [(0.9, "above"), (0.984, "within"), (0.999, "below")])
def test_a_clear_loss_or_gain_is_said(score: float, place: str) -> None:
    (line,) = headlines(document(model(test_score=score), baselines=[]))
    assert f"(the dense score lies {place} the 95 % interval of the model's, " in line
    assert "; no uniform widths meet this budget; model" in line


def test_equal_scores_are_within_the_noise_at_the_end_of_the_scale() -> None:
    (line,) = headlines(document(model(test_score=1.0), dense=DENSE | {"test_score": 1.0}, baselines=[]))
    assert "(the dense score lies within the 95 % interval of the model's, " in line


@pytest.mark.parametrize(("score", "ratio", "told"), [(0.98, 0.2, True), (0.97, 0.2, False), (0.99, 0.239, False)])
def test_uniform_widths_that_are_no_worse_and_faster_are_named(score: float, ratio: float, told: bool) -> None:
    uniform = model(strategy="uniform", score=score, latency_ratio=ratio, latency_ms_measured=0.036, digest="u")
    (line,) = headlines(document(model(), baselines=[uniform]))
    assert ("uniform widths 0.9840, which are faster (36 us, model u); model 158ebc9437ab." in line) == told


def test_a_run_that_limits_bytes_is_told_by_bytes_first() -> None:
    uniform = model(strategy="uniform", budget="bytes:50%", bytes=30_000, digest="u")
    (line,) = headlines(document(model(budget="bytes:50%"), baselines=[uniform], cost="bytes"))
    assert line.startswith("At 50 % of the bytes: 42.1 kB of weights instead of 314 kB, 4.2 times as fast")
    assert "uniform widths 0.9840, which take less (30 kB, model u); model 158ebc9437ab." in line


def test_scores_that_are_no_shares_have_no_interval() -> None:
    (line,) = headlines(document(model(), score_examples={}))
    assert "on test data; uniform" in line


@pytest.mark.parametrize("latency_ms", [0.2, 0.177])
def test_a_model_that_is_hardly_faster_is_told_by_its_size(latency_ms: float) -> None:
    (line,) = headlines(document(model(latency_ms_measured=latency_ms)))
    assert line.startswith("At 25 %: 42.1 kB of weights instead of 314 kB, accuracy")


def test_a_model_that_was_not_measured_is_told_by_its_predicted_share() -> None:
    (line,) = headlines(document(model(latency_ms_measured=None, latency_ms_predicted=0.043)))
    assert line.startswith("At 25 %: predicted to be 4.2 times as fast as the dense model, accuracy")


@pytest.mark.parametrize(
    ("given", "searched", "start"),
    [
        (["60%", "bytes:200KiB"], "60%,bytes:204800", "At 60 % and bytes:204800: 4.2 times as fast as"),
        (
            ["bytes:50kB", "params:9k"],
            "bytes:50000,params:9000",
            "At bytes:50000 and params:9000: 4.2 times as fast as",
        ),
    ],
)
def test_budgets_are_those_that_models_were_searched_for(given: list[str], searched: str, start: str) -> None:
    uniform = model(strategy="uniform", budget=searched)
    (line,) = headlines(document(model(budget=searched), budgets=given, baselines=[uniform]))
    assert line.startswith(start)
    assert (":" in searched) == ("42.1 kB of weights" in line)
    assert "; uniform widths" in line


@pytest.mark.parametrize(
    ("strategy", "beside"),
    [("guided", "; uniform widths 0.9690; model"), ("uniform", "; its widths are uniform; model")],
)
def test_a_budget_by_score_is_told_as_it_was_asked_for(strategy: str, beside: str) -> None:
    """One sentence, about the fastest model that keeps the score, and none for each latency that was searched."""
    kept, lost = model(budget="24.5%", strategy=strategy), model(budget="12%", digest="b", score=0.9)
    uniform = model(strategy="uniform", budget="24.5%", test_score=0.969, digest="c")
    answer = {"budget": "score:-1%", "least_score": 0.97, "digest": kept["digest"], "score": 0.98}
    (line,) = headlines(
        document(kept, lost, budgets=["score:-1%"], baselines=[uniform], score_budgets=[answer]),
    )
    assert line.startswith(
        "At score:-1% (at least 0.9700 on validation data), which led to 24.0% of the dense latency: 4.2 times as fast"
    )
    assert beside in line
    asked = document(
        kept, lost, budgets=["24.5%", "score:-1%"], baselines=[], score_budgets=[answer | {"digest": None}]
    )
    assert len(headlines(asked)) == (strategy != "uniform"), "a latency that was asked for is told as that"


def test_latencies_that_were_measured_in_noise_are_marked() -> None:
    quiet, noisy = ({"held_out": {"noise_percent": noise}} for noise in (15.0, 44.0))
    assert noise_lines(quiet) == []
    (line,) = noise_lines(noisy)
    assert line.startswith("MEASURED IN NOISE (--allow-noise): latencies varied by 44%")


def test_a_budget_without_a_searched_model_has_no_sentence() -> None:
    assert headlines(document(model(meets_budget=False), model(strategy="uniform"))) == []


@pytest.mark.parametrize(
    ("budget", "start"),
    [("50%", "At 50 %: "), ("bytes:50%", "At 50 % of the bytes: "), ("25%,params:5k", "At 25 % and params:5k: ")],
)
def test_budgets_are_part_of_the_sentence(budget: str, start: str) -> None:
    (line,) = headlines(document(model(budget=budget)))
    assert line.startswith(start)
