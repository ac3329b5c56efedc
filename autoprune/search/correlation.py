"""How far a cheap score can be trusted: its rank correlation with a dearer one, and what follows for promotion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.records import Policy
from autoprune.trials import TrialResult

_FEWEST = 6
"""Pairs below which a correlation says nothing."""

_CONFIDENCE = 0.9
_DRAWS = 2_000


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's rank correlation of the losses at two fidelities, within budgets, with its 90 % interval."""

    cheap: str
    dear: str
    pairs: int
    rho: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"rank correlation of {self.cheap} and {self.dear}: {self.rho:.2f} ({self.low:.2f} to {self.high:.2f})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return asdict(self)


def rank_correlation(
    cheap: Sequence[TrialResult], dear: Sequence[TrialResult], limits: Sequence[Limit]
) -> RankCorrelation | None:
    """Correlation of two rungs over the policies that both have scored; `None` for too few policies.

    Ranks are taken within each limit (the tightest that a policy fits), because between limits any score separates
    policies. The interval is Fisher's, with the variance of Bonett and Wright (2000).
    """
    first, second = _losses(cheap), _losses(dear)
    groups: dict[int, list[Policy]] = {}
    for policy in second:
        if policy in first:
            groups.setdefault(_group(dear, policy, limits), []).append(policy)
    ranks = [
        [(stats.rankdata([losses[p] for p in group]) - (len(group) + 1) / 2) / len(group) for losses in (first, second)]
        for group in groups.values()
        if len(group) > 2
    ]
    pairs = sum(len(x) for x, _ in ranks)
    if pairs < _FEWEST:
        return None
    x, y = (np.concatenate([pair[side] for pair in ranks]) for side in (0, 1))
    spread = math.sqrt(float((x**2).sum() * (y**2).sum()))
    rho = float((x * y).sum()) / spread if spread else 0.0
    freedom = max(pairs - len(ranks) - 2, 1)
    half = stats.norm.ppf(0.95) * math.sqrt((1 + rho**2 / 2) / freedom)
    middle = math.atanh(float(np.clip(rho, -0.999, 0.999)))
    return RankCorrelation(
        cheap=cheap[0].fidelity.name,
        dear=dear[0].fidelity.name,
        pairs=pairs,
        rho=rho,
        low=math.tanh(middle - half),
        high=math.tanh(middle + half),
    )


def promotion_size(rho: float, candidates: int) -> int:
    """Fewest candidates that hold the best one with 90 % probability, when the cheap score ranks it by `rho`.

    Under a Gaussian copula, by simulation; all candidates when `rho` is not positive.
    """
    if rho <= 0 or candidates < 2:
        return candidates
    pearson = 2 * math.sin(math.pi * rho / 6)
    rng = np.random.default_rng(0)
    dear = rng.standard_normal((_DRAWS, candidates))
    cheap = pearson * dear + math.sqrt(max(1 - pearson**2, 0.0)) * rng.standard_normal((_DRAWS, candidates))
    place = (cheap < np.take_along_axis(cheap, dear.argmin(axis=1)[:, None], axis=1)).sum(axis=1)
    return int(np.quantile(place, _CONFIDENCE, method="higher")) + 1


def _losses(results: Sequence[TrialResult]) -> Mapping[Policy, float]:
    return {r.policy: r.measurement.loss for r in results if r.measurement is not None}


def _group(results: Sequence[TrialResult], policy: Policy, limits: Sequence[Limit]) -> int:
    """The tightest limit that a policy fits: the last one in the order of latency."""
    (costs,) = [r.measurement.costs() for r in results if r.policy == policy and r.measurement is not None]
    fitting = [number for number, limit in enumerate(limits) if fits(costs, limit)]
    return min(fitting, key=lambda number: limits[number].most, default=-1)
