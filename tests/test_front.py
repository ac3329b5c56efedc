from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.budgets import Limit
from autoprune.errors import UsageError
from autoprune.front import hypervolume, knee, non_dominated, pick
from autoprune.records import Policy
from autoprune.trials import FrontModel

# A coarse grid makes ties and duplicates frequent, and areas countable.
points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12)


def split(pairs):
    return [p[0] for p in pairs], [p[1] for p in pairs]


def dominates(a, b):
    """Whether `a` is no worse than `b` in latency and score, and better in one."""
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(points)
def test_non_dominated_equals_brute_force(pairs):
    expected = [not any(dominates(other, p) for other in pairs) for p in pairs]
    assert non_dominated(*split(pairs)).tolist() == expected


@given(points)
def test_every_point_is_on_the_front_or_dominated_by_it(pairs):
    mask = non_dominated(*split(pairs))
    front = [p for p, kept in zip(pairs, mask, strict=True) if kept]
    assert all(p in front or any(dominates(f, p) for f in front) for p in pairs)


@given(points, st.integers(1, 8), st.integers(0, 7))
def test_hypervolume_counts_the_dominated_cells(pairs, latency, score):
    # A unit cell is dominated when its slow, low corner is.
    cells = itertools.product(range(latency), range(score, 8))
    area = sum(any(p[0] <= x and p[1] >= y + 1 for p in pairs) for x, y in cells)
    assert hypervolume(*split(pairs), (latency, score)) == area


@given(points, st.tuples(st.integers(0, 8), st.integers(0, 8)))
def test_hypervolume_never_shrinks_with_another_point(pairs, extra):
    before, after = (hypervolume(*split(p), (9, -1)) for p in (pairs, [*pairs, extra]))
    assert after >= before
    assert (after > before) == (not any(p == extra or dominates(p, extra) for p in pairs))


def test_duplicates_and_ties():
    assert non_dominated([1, 1, 1, 2], [5, 5, 4, 5]).tolist() == [True, True, False, False]
    assert non_dominated([], []).tolist() == []


@pytest.mark.parametrize(
    ("latency", "score"), [([1.0, np.nan], [1, 2]), ([1.0], [np.inf]), ([1, 2], [1]), ([[1]], [[1]])]
)
def test_values_that_cannot_be_compared_are_refused(latency, score):
    for function in (non_dominated, knee):
        with pytest.raises(UsageError):
            function(latency, score)
    with pytest.raises(UsageError):
        hypervolume(latency, score, (9, 0))
    with pytest.raises(UsageError):
        hypervolume([1], [1], (np.nan, 0))


def test_knee():
    assert knee([1, 2, 3, 10], [0.1, 0.8, 0.85, 1.0]) == 1
    assert knee([1, 2, 3, 10, 1.5], [0.1, 0.8, 0.85, 1.0, 0.0]) == 1, "dominated points do not count"
    assert knee([5], [0.5]) == 0
    assert knee([1, 2], [0.1, 0.9]) == 1
    assert knee([3, 2, 1], [3, 2, 1]) == 0, "a straight front has no knee: its best point"
    with pytest.raises(UsageError, match="at least one"):
        knee([], [])


@given(points.filter(bool), st.sampled_from([0.01, 3.0, 1000.0]))
def test_knee_is_on_the_front_and_free_of_units(pairs, scale):
    latency, score = split(pairs)
    chosen = knee(latency, score)
    assert non_dominated(latency, score)[chosen]
    assert pairs[knee([scale * x for x in latency], score)] == pairs[chosen]


def model(name, score, predicted, measured=None):
    return FrontModel(
        digest=name,
        policy=Policy(space_id="s", widths={}),
        score=score,
        test_score=None,
        latency_ms_predicted=predicted,
        latency_ms_measured=measured,
        latency_ratio=1,
        params=1,
        macs=1,
        bytes=4,
        fidelity="full",
        strategy="direct",
    )


def ms(most):
    return Limit.of(latency_ms=most)


MODELS = [model("small", 0.8, 1.0), model("middle", 0.9, 1.2, measured=1.5), model("large", 0.92, 4.0)]


def test_pick():
    assert pick(MODELS, limit=ms(1.6)).digest == "middle"
    assert pick(MODELS, limit=ms(1.3)).digest == "small", "the measured latency counts"
    assert pick(MODELS, min_score=0.85).digest == "middle"
    assert pick(MODELS, min_score=0.85, limit=ms(9)).digest == "large"
    assert pick(MODELS, knee=True).digest == "middle"
    assert pick(MODELS, knee=True, limit=ms(1.1)).digest == "small"


def test_pick_limits_every_cost_and_counts_an_unknown_one_as_too_dear():
    sized = [replace(m, bytes=size, params=size // 4) for m, size in zip(MODELS, (400, 800, 1200), strict=True)]
    assert pick(sized, limit=Limit.of(bytes=1000)).digest == "middle"
    assert pick(sized, limit=Limit.of(bytes=1000, latency_ms=1.2)).digest == "small"
    assert pick(sized[::-1], min_score=0.5, cost="bytes").digest == "small"
    assert pick(sized, knee=True, cost="params").digest == "middle"
    with pytest.raises(UsageError, match="at most 300 bytes; the nearest is small with 400 bytes"):
        pick(sized, limit=Limit.of(bytes=300))
    with pytest.raises(UsageError, match="no model takes at most 9 activation bytes"):
        pick(sized, limit=Limit.of(activation_bytes=9))


def test_pick_says_what_is_nearest():
    with pytest.raises(UsageError, match=r"at most 500 us; the nearest is small with 1 ms \(\d+.\d% of dense\)"):
        pick(MODELS, limit=ms(0.5))
    with pytest.raises(UsageError, match=r"within 2 ms scores at least 0.95; the best is middle with 0.9 at 1.5 ms"):
        pick(MODELS, limit=ms(2), min_score=0.95)
    with pytest.raises(UsageError, match="say which"):
        pick(MODELS)
    with pytest.raises(UsageError, match="no models yet"):
        pick([], knee=True)
