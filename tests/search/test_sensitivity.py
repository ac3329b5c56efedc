"""Sensitivities from results of single-unit policies."""

import numpy as np

from autoprune.records import SearchSpace
from autoprune.search.sensitivity import sensitivities, single_unit_policies, summed, to_json
from autoprune.trials import Fidelity, Measurement, TrialResult

SPACE = SearchSpace(id="s", levels={"a": (2, 4, 8), "b": (1, 3), "fixed": (5,)})
FIDELITY = Fidelity(name="proxy", rung=0, val_samples=0)


def result(number, policy, loss):
    measured = Measurement(
        score=0.5, loss=loss, latency_ms=1.0, latency_source="predicted", params=1, macs=1, bytes=1, activation_bytes=1
    )
    status, found = ("failed", None) if loss is None else ("done", measured if loss is not None else None)
    return TrialResult(
        number=number, policy=policy, fidelity=FIDELITY, status=status, seed=0, measurement=found,
        error="broke" if loss is None else None,
    )  # fmt: skip


def test_one_policy_for_each_level_below_the_largest():
    widths = [dict(policy.widths) for policy in single_unit_policies(SPACE)]
    full = {"a": 8, "b": 3, "fixed": 5}
    assert widths == [full | {"a": 4}, full | {"a": 2}, full | {"b": 1}]


def losses_of(*values):
    return [
        result(n, policy, value)
        for n, (policy, value) in enumerate(zip(single_unit_policies(SPACE), values, strict=True))
    ]


def test_a_narrower_level_never_loses_less_and_the_full_width_nothing():
    table = sensitivities(SPACE, [r for r in losses_of(0.3, 0.2, 0.1) if r.measurement])
    assert table["a"].tolist() == [0.3, 0.3, 0.0]
    assert table["b"].tolist() == [0.1, 0.0]
    assert to_json(SPACE, table)["a"] == {"2": 0.3, "4": 0.3, "8": 0.0}


def test_a_level_whose_trial_is_absent_loses_more_than_any_other():
    table = sensitivities(SPACE, losses_of(0.3, 0.5, 0.1)[:2])
    assert table["b"][0] > 0.5


def test_sums_by_unit():
    table = sensitivities(SPACE, losses_of(0.2, 0.4, 0.1))
    rows = summed(SPACE, table, [SPACE.smallest(), SPACE.largest()])
    assert np.allclose(rows, [[0.4, 0.1], [0, 0]])
