"""The guided strategy: sensitivities, the solver's answers, and a refinement of every limit beside its neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping

from autoprune.allocation.solver import Solver
from autoprune.records import Policy
from autoprune.search.allocator import Allocator
from autoprune.search.explore import Explorer, Refit
from autoprune.search.refine import PER_ROUND, Refinement

_MOST_EVALUATIONS = 60
_FEWEST_ROUNDS = 5

_ALARM = 1.3
"""Measured over summed loss of the solver's answer above which the report says so."""

_FEW_SLOTS = 4
"""With more of them a round is proposed while the one before it runs, and they do not wait for the slowest trial."""


def guided(explorer: Explorer) -> Refit:
    """Score the uniform policies, measure the sensitivities, then refine all limits round by round.

    Returns what proposes further policies from the losses of fine-tuned ones.
    """
    search = explorer.search
    uniform = dict.fromkeys(explorer.uniform.values(), "uniform")
    many = explorer.slots > _FEW_SLOTS
    if not many:
        explorer.score(uniform)  # otherwise in the first round: by themselves they would leave a cluster idle
    table = explorer.sensitivities()
    solver = Solver(search.space, search.additive)
    allocator = Allocator(space=search.space, solver=solver, table=table, predict=search.predict)
    evaluations, per_round = _rounds(search.effort.trials, len(search.limits), explorer.slots)
    refinements = [
        Refinement(allocator, limit, seed=search.run_seed, evaluations=evaluations, per_round=per_round)
        for limit in search.limits
    ]
    _refine(explorer, refinements, uniform, ahead=int(many))
    explorer.notes += [_alarm(r, explorer) for r in refinements if r.ratio(explorer.losses) > _ALARM]

    def refit(tuned: Mapping[Policy, float]) -> dict[Policy, str]:
        return {policy: "refit" for refinement in refinements for policy in refinement.refit(tuned, explorer.losses)}

    return refit


def _refine(explorer: Explorer, refinements: list[Refinement], first: Mapping[Policy, str], ahead: int) -> None:
    """Round after round, in which every limit that gains something proposes policies by all losses so far.

    The first round scores the policies `first` as well.
    """
    active = refinements

    def propose() -> dict[Policy, str]:
        nonlocal active, first
        losses = explorer.losses
        proposed = [(r, r.propose(losses)) for r in active]
        active = [r for r, found in proposed if found]
        found = {policy: origin for _, policies in proposed for policy, origin in policies.items()}
        wanted, first = {**first, **found, **first}, {}  # `first` comes first, and keeps its origins
        return wanted

    explorer.score_rounds(propose, ahead)


def _rounds(trials: int, limits: int, slots: int) -> tuple[int, int]:
    """Evaluations of a limit, and how many of them are scored together: one for every slot of many, but in rounds.

    A limit needs no more than 60; where there are workers for more of the trials that may be spent, they are. Few slots
    change neither, so that they find the same.
    """
    wanted = math.ceil(slots / limits) if slots > _FEW_SLOTS else 0
    evaluations = min(max(_MOST_EVALUATIONS, _FEWEST_ROUNDS * wanted), math.ceil(trials / limits))
    return evaluations, max(PER_ROUND, min(wanted, evaluations // _FEWEST_ROUNDS))


def _alarm(refinement: Refinement, explorer: Explorer) -> str:
    return (
        f"{refinement.limit}: the solver's first answer loses {refinement.ratio(explorer.losses):.1f} times the sum of "
        "its sensitivities: units act together, and the refinement matters"
    )
