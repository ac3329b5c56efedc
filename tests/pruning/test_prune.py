from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoprune import prune
from autoprune.errors import UsageError
from autoprune.pruning import channel_order, global_shares, keep_best
from autoprune.pruning.ranking import round_width
from autoprune.records import Policy
from tests.nets import make_net

scores = st.dictionaries(st.sampled_from("abc"), st.lists(st.floats(0, 100), min_size=1, max_size=20), min_size=1).map(
    lambda d: {k: __import__("numpy").array(v) for k, v in d.items()}
)


@given(scores, st.integers(1, 20), st.integers(1, 20))
def test_local_rankings_are_nested_and_keep_the_best(values: dict, wide: int, narrow: int) -> None:
    order = channel_order(values)
    narrow, wide = sorted((narrow, wide))
    for name, of_unit in values.items():
        widths = [Policy(space_id="", widths={name: min(w, len(of_unit))}) for w in (narrow, wide)]
        small, large = (set(keep_best(order, policy)[name].tolist()) for policy in widths)
        assert small <= large
        dropped = set(range(len(of_unit))) - small
        assert not dropped or min(of_unit[i] for i in small) >= max(of_unit[i] for i in dropped)


@given(scores, st.floats(0.01, 1))
def test_global_shares_keep_at_least_the_best(values: dict, keep: float) -> None:
    shares = global_shares(values, keep)
    kept = sum(round(share * len(values[name])) for name, share in shares.items())
    assert kept >= round(keep * sum(map(len, values.values())))
    assert all(0 <= share <= 1 for share in shares.values())


def test_global_ranking_takes_more_where_scores_are_flat() -> None:
    import numpy as np

    values = {"flat": np.ones(10), "steep": np.array([100.0] + [0.01] * 9)}
    shares = global_shares(values, 0.5)
    assert shares["flat"] > shares["steep"]


@pytest.mark.parametrize(("width", "expected"), [(5.9, 8), (11, 8), (13, 16), (0.2, 8), (99, 20)])
def test_rounding(width: float, expected: int) -> None:
    assert round_width(width, 20, 8) == expected


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_prune_returns_a_smaller_module_that_trains(ranking: str) -> None:
    net, inputs = make_net("chain")
    small = prune(net, inputs, keep=0.5, multiple_of=2, ranking=ranking)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    small.train()
    small(*inputs).sum().backward()
    assert small(*inputs).shape == (2, 3)


def test_only_chosen_units_are_pruned() -> None:
    net, inputs = make_net("residual")
    small = prune(net, inputs, keep=0.5, multiple_of=1, choose=lambda name: name == "c2")
    assert small.get_parameter("c2.weight").shape[:2] == (3, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "above 0"),
        ({"keep": "50%"}, "at most 1; got '50%'"),
        ({"ranking": "best"}, "local"),
        ({"choose": ["c1"]}, r"a function of a unit's name; got \['c1'\]"),
    ],
)
def test_bad_requests(options: dict, message: str) -> None:
    net, inputs = make_net("chain")
    with pytest.raises(UsageError, match=message):
        prune(net, inputs, **options)


def test_full_keep_changes_nothing() -> None:
    net, inputs = make_net("residual")
    with torch.no_grad():
        torch.testing.assert_close(prune(net, inputs, keep=1.0, multiple_of=1)(*inputs), net(*inputs))


def test_nothing_is_kept_of_a_removed_unit() -> None:
    order = {"a": [2, 0, 1], "b": [1, 0]}
    kept = keep_best(order, Policy(space_id="", widths={"a": 0, "b": 1}))
    assert kept["a"].shape == (0,)
    assert kept["a"].dtype == kept["b"].dtype == "int64"
    assert kept["b"].tolist() == [1]


class Nested(nn.Module):
    """Channels that are indexed by group and by place in the group."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        middle = {
            "group norm": lambda: nn.GroupNorm(8, 64),
            "grouped convolution": lambda: nn.Conv2d(64, 64, 1, groups=8),
            "pixel shuffle": lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
        }
        self.first, self.middle, self.last = nn.Conv2d(3, 64, 1), middle[kind](), nn.Conv2d(64, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


@pytest.mark.parametrize("kind", ["group norm", "grouped convolution", "pixel shuffle"])
@pytest.mark.parametrize(("keep", "expected"), [(0.5, 32), (0.25, 16), (1.0, 64)])
def test_units_of_groups_and_within_groups_together_keep_the_share(kind: str, keep: float, expected: int) -> None:
    small = prune(Nested(kind), torch.randn(1, 3, 4, 4), keep=keep, multiple_of=1 if kind == "pixel shuffle" else 2)
    assert small.get_parameter("first.weight").shape[0] == expected
    assert small.get_parameter("last.weight").shape[1] == expected


@pytest.mark.parametrize("kind", ["group norm", "grouped convolution"])
def test_units_that_meet_keep_the_share_of_a_global_ranking(kind: str) -> None:
    torch.manual_seed(0)
    small = prune(Nested(kind), torch.randn(1, 3, 4, 4), keep=0.5, multiple_of=1, ranking="global")
    assert abs(small.get_parameter("last.weight").shape[1] - 32) <= 6
