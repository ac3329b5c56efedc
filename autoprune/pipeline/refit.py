"""Candidates against their predictions: where they differ too much, the latency table is fitted anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autoprune.allocation.promotion import best_within
from autoprune.allocation.uniform import baselines
from autoprune.latency.evidence import refit_table
from autoprune.pipeline.deployment import deployed, measure_beside_dense
from autoprune.pipeline.events import Events
from autoprune.pipeline.prepare import Setup
from autoprune.records import Policy
from autoprune.runfolder import read_json, write_json
from autoprune.search.effort import Effort
from autoprune.trials import TrialResult

LARGEST_ERROR = 0.03
"""A prediction that is further off than this share of the measurement makes the table be fitted anew."""

_CANDIDATES = 2
_MOST_REFITS = 2
_MORE_TRIALS = 0.25
"""Share of the proposals that a search makes again after each new fit, because its budgets lie elsewhere now."""


def uniform_baselines(setup: Setup) -> dict[str, Policy]:
    """The uniform policy of every budget that has one."""
    full_widths = setup.dense_model.structure.full_widths
    found = baselines(setup.space, full_widths, setup.costs, list(setup.limits.values()))
    return {budget: found[limit] for budget, limit in setup.limits.items() if limit in found}


def widened(effort: Effort, refits: int) -> Effort:
    """The effort of a search whose table was fitted anew so often."""
    return replace(effort, trials=effort.trials + round(effort.trials * _MORE_TRIALS * refits))


def refitted(setup: Setup, rung: Sequence[TrialResult], events: Events) -> Setup | None:
    """Measure the best candidates of every budget; the setup with a better table, or `None` when all is well.

    `rung` holds the results of the dearest rung. The new table is kept in the run folder.
    """
    answered = {"budgets": list(setup.limits), "refits": setup.table.refits}
    settled = read_json(setup.folder.settled) if setup.folder.settled.exists() else {}
    # Measured again in a busier moment, a run that was finishing already would search on and lose what it fine-tuned.
    if setup.foreign or setup.table.refits >= _MOST_REFITS or answered == {key: settled.get(key) for key in answered}:
        return None
    best = {r.policy for limit in setup.limits.values() for r in best_within(rung, limit, _CANDIDATES)}
    policies = list(dict.fromkeys([*sorted(best, key=Policy.digest), *uniform_baselines(setup).values()]))
    ratios = measured_ratios(setup, policies)
    errors = np.array([setup.predict_ms(p) for p in policies]) / (ratios * setup.table.dense_ms) - 1
    worst = float(np.abs(errors).max())
    events.note(f"predicted against measured, {len(policies)} candidates: off by at most {worst:.1%}")
    if worst <= LARGEST_ERROR:
        write_json(setup.folder.settled, answered | {"candidates": len(policies), "largest_error": worst})
        return None
    events.note(f"more than {LARGEST_ERROR:.0%}: the latency table is fitted anew with them, and the search goes on")
    structure = setup.dense_model.structure
    table = refit_table(setup.table, structure, structure.widths(policies), ratios)
    table.save(setup.folder.table)
    return replace(setup, table=table, predictor=table.predictor(structure))


def measured_ratios(setup: Setup, policies: Sequence[Policy]) -> np.ndarray:
    """Latencies as shares of the dense model's `[P]`, measured together; as predicted for a table of another device."""
    if setup.foreign:
        return np.array([setup.predict_ms(policy) for policy in policies]) / setup.table.dense_ms
    with setup.folder.scratch() as folder:
        paths = [folder / f"{number}.onnx" for number in range(len(policies))]
        models = [deployed(setup, setup.dense_model.shrink(p), path) for p, path in zip(policies, paths, strict=True)]
        return np.array(measure_beside_dense(setup, models).ratios)
