"""Metrics that fall for better models: turned round, or noticed."""

import dataclasses

import pytest
from torch.utils.data import DataLoader

from autoprune.errors import TaskError
from autoprune.task.metric_direction import doubt, is_named_like_an_error
from autoprune.training.scoring import evaluate
from tests.task.toys import toy_task


def misses(model, data):
    """Share of wrong answers."""
    return float(sum((model(x).argmax(1) != y).sum() for x, y in DataLoader(data, 8)) / len(data))


@pytest.mark.parametrize("name", ["RMSE", "val_loss", "word error rate", "valLoss", "MAE", "perplexity", "WER (%)"])
def test_names_of_errors(name):
    assert is_named_like_an_error(name)


@pytest.mark.parametrize("name", ["-RMSE", "neg_rmse", "negative loss", "1 - WER", "accuracy", "mAP", "ferret", ""])
def test_other_names(name):
    assert not is_named_like_an_error(name)


def test_a_metric_that_falls_is_turned_round_once():
    task = toy_task(metric=misses, lower_is_better=True)
    assert task.metric_name == "-misses"
    again = dataclasses.replace(task, name="again")
    assert again.metric_name == "-misses"
    model = task.build_model()
    score = evaluate(model, again, again.val_set).score
    assert score == -misses(model.eval(), task.val_set)
    assert score < 0


def test_only_a_metric_has_a_direction():
    with pytest.raises(TaskError, match="about `metric`, which is absent"):
        toy_task(lower_is_better=True)


def test_what_is_doubted():
    assert "higher (0.9) for a model cut without repair" in doubt("regression", 0.5, 0.9, trained=True)
    assert "named like an error" in doubt("RMSE", 0.5, 0.4, trained=True)
    assert "lower_is_better=True" in doubt("RMSE", 0.5, 0.4, trained=False)
    assert doubt("RMSE", -0.5, -0.9, trained=True) is None
    assert doubt("accuracy", 0.5, 0.51, trained=True) is None
    assert doubt("accuracy", 0.1, 0.4, trained=False) is None
