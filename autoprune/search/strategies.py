"""How the proxy rung is filled: every strategy scores policies through the same `Explorer`, in its own order.

Every strategy scores the uniform policy of each budget, so that each front has its baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autoprune.errors import unknown_name
from autoprune.records import Policy
from autoprune.search.explore import Explorer
from autoprune.search.guided import guided

Strategy = Callable[[Explorer], None]


def find_strategy(name: str) -> Strategy:
    """The strategy of that name; `UsageError` if unknown."""
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES)
    return STRATEGIES[name]


def direct(explorer: Explorer) -> None:
    """An Optuna sampler proposes levels, moved onto one of the limits (see `repair`)."""
    explorer.sample(_uniform(explorer), explorer.search.sampler)


def random(explorer: Explorer) -> None:
    """Random levels, moved onto one of the limits."""
    explorer.sample(_uniform(explorer), "random")


def uniform(explorer: Explorer) -> None:
    """The uniform policies alone."""
    explorer.score(_uniform(explorer))


def _uniform(explorer: Explorer) -> dict[Policy, str]:
    return dict.fromkeys(explorer.uniform.values(), "uniform")


STRATEGIES: Mapping[str, Strategy] = {"guided": guided, "direct": direct, "random": random, "uniform": uniform}
"""By name; the first one is the default."""
