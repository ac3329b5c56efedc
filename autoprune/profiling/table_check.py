"""Check whether a table still holds: some of its held-out policies are measured again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from autoprune.device.target import Target
from autoprune.device.timing import Protocol
from autoprune.latency.fitting import HeldOut, held_out
from autoprune.latency.table import HELD_OUT, LatencyTable
from autoprune.profiling.policy_timer import PolicyTimer, Progress, make_policy_timer
from autoprune.structure import Structure

CLOCK_TOLERANCE = 0.05
"""Share by which the dense model may differ from the table before budgets in milliseconds are in doubt."""
_POLICIES = 30
_REMEASURED = 8
_LARGEST_MAPE_PERCENT = 3.0
"""Beyond this mean error a run would fit its table again; a table that was worse when it was made may stay so."""


@dataclass(frozen=True, kw_only=True)
class TableCheck:
    """A table against today's measurements: errors `now` and `before`, and the dense model's milliseconds."""

    now: HeldOut
    before: HeldOut
    dense_ms_now: float
    dense_ms_before: float

    @property
    def holds(self) -> bool:
        """Whether the table predicts (shares of the dense latency) as well as a run demands, or as it once did."""
        return self.now.mape_percent <= max(_LARGEST_MAPE_PERCENT, 1.5 * self.before.mape_percent)


def check_table(
    table: LatencyTable,
    structure: Structure,
    target: Target,
    *,
    seed: int = 0,
    on_progress: Progress | None = None,
    protocol: Protocol | None = None,
    timer: PolicyTimer | None = None,
) -> TableCheck:
    """Measure 30 held-out policies of a table again and compare them with its predictions.

    Both are shares of the dense model's latency, as budgets are; a faster clock alone changes nothing.

    Args:
        table: The table to check.
        structure: The structure that the table was measured for.
        target: What measures.
        seed: Seed of the inputs and of the order in which policies are timed.
        on_progress: Called with every model that is built.
        protocol: How often every model is timed.
        timer: What times policies of `structure` on `target`, with its own seed and progress; default: the target's.

    Raises:
        StructureError: The model cannot be exported.
        LatencyError: The exported models cannot be timed.
    """
    timer = timer or make_policy_timer(structure, target, layers=table.layers, seed=seed, on_progress=on_progress)
    timer = replace(timer, accuracy_levels=table.accuracy_levels)
    samples = [sample for sample in table.samples if sample.role == HELD_OUT][:_POLICIES]
    rows = structure.rows([sample.policy for sample in samples], table.layers)
    protocol = protocol or Protocol()
    first = timer.time(rows, "measuring again", protocol)
    second = timer.time(rows[:_REMEASURED], "noise", protocol)
    predicted = table.predictor(structure).predict_with_sd(rows)
    return TableCheck(
        now=held_out(
            predicted.latency_ms,
            np.array(first.ratios) * table.dense_ms,
            np.array(second.ratios) * table.dense_ms,
            predicted.sd_ms,
        ),
        before=table.held_out,
        dense_ms_now=first.reference_ms,
        dense_ms_before=table.dense_ms,
    )
