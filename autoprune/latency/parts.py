"""Parts of a predicted latency: how many of its milliseconds each layer takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from autoprune.latencies import CONVERSIONS
from autoprune.latency.charges import PricedOperator
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.predictor import GeometryIndex
from autoprune.latency.table import LatencyTable
from autoprune.records import Policy
from autoprune.structure import Structure

REST = "what no width changes"
"""Name of the constant part of a prediction."""

BETWEEN_TYPES = "conversions to int8 and back"


def layer_costs(table: LatencyTable, structure: Structure, policies: Sequence[Policy]) -> list[dict[str, float]]:
    """Return predicted milliseconds by layer for every policy, in the order of the model; their sum is the prediction.

    An operator without weights counts under its own name, one that the table does not know as 0. Conversions between
    fp32 and int8 are counted together.

    Args:
        table: of the structure.
        structure: of the model.
        policies: each in the space of the table.
    """
    priced = PricedOperators.of(structure, table.layers).varying
    numbers = GeometryIndex(priced, tuple(table.entries)).numbers(structure.rows(policies, table.layers))
    entries_ms = np.array([*(entry.latency_ms for entry in table.entries.values()), 0.0, 0.0])
    costs_ms = entries_ms[numbers]  # those of absent and unknown operators are counted from the end
    parts = []
    for row in costs_ms:
        of_policy: dict[str, float] = defaultdict(float)
        for operator, cost_ms in zip(priced, row.tolist(), strict=True):
            of_policy[_layer(operator)] += cost_ms
        parts.append(dict(of_policy) | {REST: table.remainder_ms})
    return parts


def _layer(operator: PricedOperator) -> str:
    weighted = next((name for name in operator.parameters if name.endswith("weight")), "")
    if operator.op in CONVERSIONS:
        return BETWEEN_TYPES
    return weighted.rpartition(".")[0] or operator.node
