"""How the proxy rung is filled: every strategy scores policies through the same `Explorer`, in its own order.

Every strategy scores the uniform policy of each budget, so that each front has its baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autoprune.errors import unknown_name
from autoprune.search.baselines.amc import amc
from autoprune.search.baselines.fastnas import fastnas
from autoprune.search.baselines.global_scores import global_threshold
from autoprune.search.baselines.halp import halp
from autoprune.search.baselines.netadapt import netadapt
from autoprune.search.baselines.shared import score_baselines
from autoprune.search.explore import Explorer, Refit
from autoprune.search.guided import guided

Strategy = Callable[[Explorer], Refit | None]


def find_strategy(name: str) -> Strategy:
    """The strategy of that name; `UsageError` if unknown."""
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES)
    return STRATEGIES[name]


def direct(explorer: Explorer) -> None:
    """An Optuna sampler proposes levels, moved onto one of the limits (see `fit_to_limit`)."""
    explorer.sample(explorer.baselines, explorer.search.sampler)


def random(explorer: Explorer) -> None:
    """Random levels, moved onto one of the limits."""
    explorer.sample(explorer.baselines, "random")


STRATEGIES: Mapping[str, Strategy] = {
    "guided": guided,
    "direct": direct,
    "random": random,
    "uniform": score_baselines,
    "global-magnitude": global_threshold,
    "global-taylor": global_threshold,
    "fastnas": fastnas,
    "halp": halp,
    "netadapt": netadapt,
    "amc": amc,
}
"""By name; the first one is the default."""

JOINT = ("guided", "direct", "random", "uniform")
"""Strategies that decide about treatments, too; the others are yardsticks of widths, and leave all layers dense."""

NEEDS_IMPORTANCE: Mapping[str, str] = {"global-magnitude": "l2", "global-taylor": "taylor", "halp": "taylor"}
"""The score of channels (of `autoprune.pruning`) that a strategy goes by, as `Search.importance`, by its name."""
