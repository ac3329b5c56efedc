"""Baselines: zeros that are shared out by the dense weights, and the dense model in int8."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import autoprune
from autoprune.budgets import Limit
from autoprune.errors import VerificationError
from autoprune.pipeline import baselines
from autoprune.pipeline.baselines import SHARED_OUT, shared_out_zeros
from autoprune.records import Policy, SearchSpace
from autoprune.treatments import DENSE, INT8, Layer, Treatment
from autoprune.trials import BASELINES
from tests.fakes import costs_of

ZEROS = tuple(Treatment.parse(text) for text in ("sparse:90%", "sparse:75%", "sparse:50%"))


def _density(policy: Policy) -> float:
    patterns = [policy.treatments.get(name, DENSE).pattern for name in ("0.weight", "1.weight")]
    return sum(1.0 if pattern is None else pattern.density for pattern in patterns) / 2


def _densities(**limits: float) -> Any:
    """Costs of two layers: their mean density, below limits by the names of budgets."""
    layers = [
        Layer(name=name, op="linear", nodes=(), precisions=("fp32",), weights=(name,), shapes=((16, 16),))
        for name in ("0.weight", "1.weight")
    ]
    return SimpleNamespace(
        structure=SimpleNamespace(layers=layers),
        limits={budget: Limit.of(latency_ms=most) for budget, most in limits.items()},
        limited_costs=lambda policies: costs_of(_density, policies),
    )


def test_zeros_are_shared_out_by_weights_within_every_budget() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    dense[0].weight.data *= 10.0  # so that its weights stay, for the net-wide ranking of sizes alone
    space: Any = SearchSpace(id="s", levels={"0.weight": (*ZEROS, DENSE), "1.weight": (*ZEROS, DENSE)})
    costs = _densities(half=0.56, tiny=0.01)
    found = {(budget, strategy): policy for budget, strategy, policy in shared_out_zeros(space, costs, dense)}
    assert set(found) == {("half", strategy) for strategy in SHARED_OUT}
    assert {"uniform", *SHARED_OUT} == set(BASELINES)
    assert dict(found["half", "global magnitude"].treatments) == {"1.weight": ZEROS[0]}
    assert {str(t) for t in found["half", "ERK"].treatments.values()} == {"sparse:50%"}
    without = SearchSpace(id="s", levels={"0.weight": (INT8, DENSE)})
    assert shared_out_zeros(without, costs, dense) == []


def test_layers_share_zeros_out_in_their_own_form_of_int8() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    static, dynamic = (
        tuple(Treatment.parse(f"{form}+{zeros}") for zeros in ZEROS) for form in ("int8", "int8-dynamic")
    )
    space: Any = SearchSpace(id="s", levels={"0.weight": (*static, DENSE), "1.weight": (*dynamic, DENSE)})
    costs = _densities(half=0.51)
    found = {strategy: policy for _, strategy, policy in shared_out_zeros(space, costs, dense)}
    assert dict(found["ERK"].treatments) == {"0.weight": static[2], "1.weight": dynamic[2]}


def test_a_dense_model_in_int8_that_is_not_proven_is_left_out_with_a_note(
    finished: autoprune.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unproven(*_: Any) -> None:
        raise VerificationError("the file computes something else")

    monkeypatch.setattr(baselines, "verify_model", unproven)
    monkeypatch.setattr(baselines, "whole", lambda path: True)
    notes: list[str] = []
    plan: Any = SimpleNamespace(space=SearchSpace(id="s", levels={"0.weight": (INT8, DENSE)}))
    deployment: Any = SimpleNamespace(folder=finished.folder)
    events: Any = SimpleNamespace(note=notes.append)
    costs: Any = None
    assert baselines.dense_in_int8(plan, costs, deployment, events) is None
    assert notes == ["the dense model in int8 is left out: the file computes something else"]
