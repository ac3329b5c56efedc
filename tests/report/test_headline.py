"""One sentence says what a run reached for a budget, and against what."""

from __future__ import annotations

from typing import Any

from autoprune.report import headlines

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
        "25%: 158ebc9437ab is 4.2 times as fast as the dense model (43 us instead of 179 us), accuracy 0.9840 instead "
        "of 0.9870 on test data (dense is within its 95 % interval, 0.9742 to 0.9901); uniform widths 0.9690."
    ]


def test_a_clear_loss_is_said() -> None:
    (line,) = headlines(document(model(test_score=0.9), baselines=[]))
    assert "dense is outside its 95 % interval, 0.8798 to 0.9171); no uniform widths meet this budget." in line


def test_scores_that_are_no_shares_have_no_interval() -> None:
    (line,) = headlines(document(model(), score_examples={}))
    assert "on test data; uniform" in line


def test_a_model_that_is_not_faster_is_told_by_its_size() -> None:
    (line,) = headlines(document(model(latency_ms_measured=0.2), budgets=["25%"]))
    assert line.startswith("25%: 158ebc9437ab takes 42.1 kB of weights instead of 314 kB, accuracy")


def test_a_budget_without_a_searched_model_has_no_sentence() -> None:
    assert headlines(document(model(meets_budget=False), model(strategy="uniform"))) == []
