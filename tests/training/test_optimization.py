import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW

from autoprune.errors import UsageError
from autoprune.task.recipe import Recipe
from autoprune.training.optimization import learning_rate, make_optimizer, uses_bf16


@given(steps=st.integers(1, 300), schedule=st.sampled_from(["cosine", "one-cycle"]))
def test_rates_rise_to_the_peak_then_fall_and_are_never_zero(steps, schedule):
    recipe = Recipe(lr=0.2, schedule=schedule)
    rates = [learning_rate(recipe, (step + 0.5) / steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 0.2 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if steps >= 100:
        assert max(rates) > 0.199
        assert rates[-1] < 0.001


@pytest.mark.parametrize(("name", "kind"), [("sgd", SGD), ("adamw", AdamW)])
def test_only_filters_and_matrices_decay(name, kind):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model[2].bias.requires_grad_(False)
    optimizer = make_optimizer(model, Recipe(optimizer=name, weight_decay=0.1))
    assert isinstance(optimizer, kind)
    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {id(p): 0.1 if p.ndim > 1 else 0.0 for p in model.parameters() if p.requires_grad}
    assert decayed == expected


def test_precision_on_demand():
    assert uses_bf16("bf16")
    assert not uses_bf16("fp32")


def test_a_frozen_model_is_refused():
    with pytest.raises(UsageError, match=r"none of the 2 of the model does\. Unfreeze some"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), Recipe())
