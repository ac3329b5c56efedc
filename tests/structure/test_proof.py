"""Tests of `autoprune.structure.proof`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.records import Policy
from autoprune.structure import analyze
from autoprune.structure.proof import _Comparison

_LAYERS = {
    "dropout": (nn.Dropout(0.5), [False]),
    "layer norm": (nn.LayerNorm(8), [False]),
    "batch norm": (nn.BatchNorm1d(8), [False, True]),
}


@pytest.mark.parametrize("case", _LAYERS)
def test_the_training_graph_is_proven_where_it_computes_something_else(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout is off in the proof, so that it alone makes no difference between the modes."""
    layer, expected = _LAYERS[case]
    proven = list[bool]()
    original = _Comparison.difference

    def noted(self: _Comparison, training: bool, *rest: frozenset[str]) -> float:
        proven.append(training)
        return original(self, training, *rest)

    monkeypatch.setattr(_Comparison, "difference", noted)
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.ReLU(), nn.Linear(8, 3))
    structure = analyze(model, torch.randn(1, 6))
    structure.shrink(Policy(space_id="", widths={unit.name: 4 for unit in structure.units}))
    assert sorted(proven) == expected
