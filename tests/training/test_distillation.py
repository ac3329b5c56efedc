import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.training.distillation import are_logits, distillation_loss, divergence


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_divergence_of_classes_by_hand():
    dense = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    model = torch.log(torch.tensor([[0.25, 0.75], [0.9, 0.1]]))
    by_hand = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    assert divergence(model, dense, classifies=True) == pytest.approx(by_hand, rel=1e-5)


def test_divergence_of_values_is_relative():
    dense = torch.tensor([[3.0, 4.0]])
    assert divergence(dense * 1.1, dense, classifies=False) == pytest.approx(0.01, rel=1e-4)
    assert divergence(dense * 110, dense * 100, classifies=False) == pytest.approx(0.01, rel=1e-4)
    assert math.isfinite(divergence(dense, torch.zeros(1, 2), classifies=False))


@given(seed=st.integers(0, 1000), classifies=st.booleans())
def test_divergence_is_zero_for_equal_outputs_and_positive_otherwise(seed, classifies):
    one, other = randn(5, 4, seed=seed), randn(5, 4, seed=seed + 1)
    assert divergence(one, one, classifies=classifies) == pytest.approx(0, abs=1e-6)
    assert divergence(other, one, classifies=classifies) > 1e-3


def test_adding_a_constant_to_logits_changes_nothing():
    logits = randn(5, 4)
    assert divergence(logits + 7, logits, classifies=True) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "classifies", "expected"),
    [
        ((5, 4), True, True),
        ((5, 4), False, False),
        ((5, 1), True, False),
        ((5,), True, False),
        ((5, 4, 2), True, False),
    ],
)
def test_what_counts_as_logits(shape, classifies, expected):
    assert are_logits(torch.zeros(shape), classifies=classifies) is expected


@pytest.mark.parametrize("classifies", [True, False])
def test_the_loss_pulls_towards_the_dense_outputs(classifies):
    dense, outputs = randn(8, 4, seed=1), randn(8, 4, seed=2).requires_grad_()
    loss = distillation_loss(outputs, dense, classifies=classifies, temperature=3.0)
    loss.backward()
    assert outputs.grad is not None
    nearer = outputs.detach() - 0.5 * outputs.grad
    assert divergence(nearer, dense, classifies=classifies) < divergence(outputs, dense, classifies=classifies)


def test_at_high_temperature_the_loss_keeps_its_size():
    dense, outputs = 0.1 * randn(8, 4, seed=1), 0.1 * randn(8, 4, seed=2)
    cold, hot = (distillation_loss(outputs, dense, classifies=True, temperature=t).item() for t in (1.0, 8.0))
    assert hot == pytest.approx(cold, rel=0.1)
