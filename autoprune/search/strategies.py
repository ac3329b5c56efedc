"""How the first rung is filled: what is scored first, and which sampler proposes the rest.

Every strategy scores the uniform policy of each budget, so that each front has its baseline. Sampled policies are
always moved onto one of the budgets (see `repair`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoprune.budgets import Limit
from autoprune.errors import unknown_name
from autoprune.records import Policy


@dataclass(frozen=True, kw_only=True)
class Start:
    """Policies to score first, with their origin, and the sampler for the remaining trials (None: no others)."""

    fixed: Mapping[Policy, str]
    sampler: str | None


def start_of(strategy: str, sampler: str, uniform: Mapping[Limit, Policy]) -> Start:
    """The start of a named strategy; `uniform` holds the uniform policy of each limit. `UsageError` if unknown."""
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    return STRATEGIES[strategy](sampler, dict.fromkeys(uniform.values(), "uniform"))


def _direct(sampler: str, fixed: Mapping[Policy, str]) -> Start:
    return Start(fixed=fixed, sampler=sampler)


def _random(_sampler: str, fixed: Mapping[Policy, str]) -> Start:
    return Start(fixed=fixed, sampler="random")


def _uniform(_sampler: str, fixed: Mapping[Policy, str]) -> Start:
    return Start(fixed=fixed, sampler=None)


STRATEGIES: Mapping[str, Callable[[str, Mapping[Policy, str]], Start]] = {
    "direct": _direct,
    "random": _random,
    "uniform": _uniform,
}
