"""Sensitivities from losses of single-unit policies."""

from autoprune.records import SearchSpace
from autoprune.search.sensitivity import by_unit, sensitivities, single_unit_policies

SPACE = SearchSpace(id="s", levels={"a": (2, 4, 8), "b": (1, 3), "fixed": (5,)})


def losses_of(*values):
    return dict(zip(single_unit_policies(SPACE), values, strict=True))


def test_one_policy_for_each_level_below_the_largest():
    widths = [dict(policy.widths) for policy in single_unit_policies(SPACE)]
    full = {"a": 8, "b": 3, "fixed": 5}
    assert widths == [full | {"a": 4}, full | {"a": 2}, full | {"b": 1}]


def test_a_narrower_level_never_loses_less_and_the_full_width_nothing():
    table = sensitivities(SPACE, losses_of(0.3, 0.2, 0.1))
    assert table["a"].tolist() == [0.3, 0.3, 0.0]
    assert table["b"].tolist() == [0.1, 0.0]


def test_a_level_that_failed_loses_most():
    losses = losses_of(0.1, 0.2, 0.3)
    del losses[SPACE.policy({"a": 4})]
    assert sensitivities(SPACE, losses)["a"].tolist() == [3.0, 3.0, 0.0]


def test_losses_by_unit():
    table = sensitivities(SPACE, losses_of(0.1, 0.2, 0.3))
    assert by_unit(SPACE, table, [SPACE.policy({"a": 4, "b": 1}), SPACE.largest()]).tolist() == [[0.1, 0.3], [0, 0]]
