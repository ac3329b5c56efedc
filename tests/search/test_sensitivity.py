"""Sensitivities from losses of single-unit policies."""

import numpy as np
import pytest

from autoprune.records import SearchSpace
from autoprune.search.sensitivity import anchor_policies, by_unit, sensitivities, single_unit_policies

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


REMOVABLE = {f"r{number}": (0, 4, 8, 12, 16) for number in range(5)}
WIDE = SearchSpace(id="w", levels={"stream": (2, 4, 6, 8, 16), **REMOVABLE, "pair": (4, 8)})


def exponential(policy):
    """Every unit loses 2 to the power of -8 times its share, times a number of its own."""
    losses = [n * 2 ** (-8 * policy.widths[name] / WIDE.levels[name][-1]) for n, name in enumerate(WIDE.levels, 1)]
    return sum(
        loss
        for loss, (name, levels) in zip(losses, WIDE.levels.items(), strict=True)
        if policy.widths[name] < levels[-1]
    )


def test_anchors_are_the_lowest_level_and_the_middle_and_of_most_removals_the_removal():
    asked = [{n: w for n, w in p.widths.items() if w < WIDE.levels[n][-1]} for p in anchor_policies(WIDE)]
    both = [{"stream": 8}, {"stream": 2}, {"r0": 8}, {"r0": 0}]
    assert asked == [*both, {"r1": 0}, {"r2": 0}, {"r3": 8}, {"r3": 0}, {"r4": 0}, {"pair": 4}]
    assert anchor_policies(WIDE).keys() <= single_unit_policies(WIDE).keys()


def test_where_losses_are_exponential_the_anchors_say_all():
    anchors = anchor_policies(WIDE)
    few = sensitivities(WIDE, {p: exponential(p) for p in anchors}, anchors)
    every = sensitivities(WIDE, {p: exponential(p) for p in single_unit_policies(WIDE)})
    for name in WIDE.searched:
        np.testing.assert_allclose(few[name], every[name], rtol=1e-9)


def test_what_is_measured_stays_and_what_is_not_is_monotone():
    anchors = anchor_policies(WIDE)
    losses = dict(zip(anchors, np.random.default_rng(0).random(len(anchors)), strict=True))
    table = sensitivities(WIDE, losses, anchors)
    for name, values in table.items():
        assert np.all(np.diff(values) <= 0)
        for level, value in zip(WIDE.levels[name], values, strict=True):
            policy = WIDE.policy({name: level})
            if level == WIDE.levels[name][0]:
                assert value == pytest.approx(max(losses[p] for p in anchors if p.widths[name] < WIDE.levels[name][-1]))
            elif policy in losses:
                assert value == pytest.approx(losses[policy])


def test_units_that_lose_nothing_have_no_sensitivity_to_speak_of():
    anchors = anchor_policies(WIDE)
    table = sensitivities(WIDE, dict.fromkeys(anchors, 0.0), anchors)
    assert all(np.isfinite(values).all() and values.max() < 1e-6 for values in table.values())


def test_where_no_unit_shows_how_losses_fall_they_fall_as_usual():
    space = SearchSpace(id="o", levels={"r0": (0, 8), "r1": (0, 4, 8)})
    anchors = anchor_policies(space)
    assert sensitivities(space, dict.fromkeys(anchors, 0.5), anchors)["r1"].tolist() == [
        pytest.approx(0.5),
        pytest.approx(0.5 * np.exp(-2.5)),
        0.0,
    ]
