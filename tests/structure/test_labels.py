from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoprune.structure.labels import Labels, Value

pairs = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=40)


def classes(edges: list[tuple[int, int]], fixed: set[int]) -> dict[int, frozenset[int]]:
    """Connected components of labels 0 to 30 by brute force; label 0 is joined to all fixed labels."""
    member = {i: {i} for i in range(31)}
    for a, b in [*edges, *((0, f) for f in fixed)]:
        joined = member[a] | member[b]
        for i in joined:
            member[i] = joined
    return {i: frozenset(m) for i, m in member.items()}


@given(pairs, st.sets(st.integers(1, 30), max_size=3))
def test_union_find_agrees_with_connected_components(edges: list[tuple[int, int]], fixed: set[int]) -> None:
    labels = Labels()
    labels.fresh(30)
    for a, b in edges:
        labels.union(np.array([a]), np.array([b]))
    for label in fixed:
        labels.fix(np.array([label]), "because")
    wanted = classes(edges, fixed)
    roots = labels.roots(np.arange(31))
    for i in range(31):
        assert {j for j in range(31) if roots[j] == roots[i]} == wanted[i]
        assert (roots[i] == 0) == (0 in wanted[i])


def test_fixed_labels_keep_their_reason() -> None:
    labels = Labels()
    a, b = labels.fresh(2), labels.fresh(2)
    labels.union(a, b)
    labels.fix(b, "an output")
    assert {labels.reason(int(x)) for x in b} == {"an output"}


def test_an_equation_with_one_cause_is_a_union_and_fixed_causes_drop_out() -> None:
    labels = Labels()
    whole, left, right = labels.fresh(2), labels.fresh(2), labels.fresh(2)
    labels.either(whole, [left, right])
    labels.fix(right, "fixed")
    assert labels.simplified() == []
    assert (labels.roots(whole) == labels.roots(left)).all()


def test_a_fixed_whole_fixes_its_causes() -> None:
    labels = Labels()
    whole, left, right = labels.fresh(1), labels.fresh(1), labels.fresh(1)
    labels.either(whole, [left, right])
    labels.fix(whole, "an output")
    assert labels.simplified() == []
    assert not labels.roots(np.concatenate([left, right])).any()


def test_an_empty_side_fixes_the_other() -> None:
    labels = Labels()
    array = labels.fresh(3)
    labels.equate([array], [], "a fixed input")
    assert not labels.roots(array).any()


def test_values_know_their_dimensions() -> None:
    value = Value.of_dims((2, 3, 1), {1: [np.array([4, 5, 6])], 2: [np.array([7])]})
    assert [a.tolist() for a in value.along(1)] == [[4, 5, 6]]
    assert value.along(0) == value.along(2) == []
