"""The guided strategy: sensitivities, the solver's answers, and a refinement of every limit beside its neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping

from autoprune.records import Policy
from autoprune.search.allocation import Allocator
from autoprune.search.explore import Explorer, Refit
from autoprune.search.refine import ALARM, Refinement
from autoprune.search.solver import Solver

_MOST_EVALUATIONS = 60


def guided(explorer: Explorer) -> Refit:
    """Score the uniform policies, measure the sensitivities, then refine all limits round by round.

    Returns what proposes further policies from the losses of fine-tuned ones.
    """
    search = explorer.search
    explorer.score(dict.fromkeys(explorer.uniform.values(), "uniform"))
    table = explorer.sensitivities()
    solver = Solver(search.space, search.additive)
    allocator = Allocator(space=search.space, solver=solver, table=table, predict=search.predict)
    evaluations = min(_MOST_EVALUATIONS, math.ceil(search.effort.trials / len(search.limits)))
    refinements = [
        Refinement(allocator, limit, seed=search.run_seed, sampler=search.sampler, evaluations=evaluations)
        for limit in search.limits
    ]
    active = refinements
    while active:
        explorer.score_apart([p for r in active for p in r.surroundings(explorer.losses)])
        losses = explorer.losses
        proposed = [(r, r.propose(losses)) for r in active]
        explorer.score({p: origin for _, found in proposed for p, origin in found.items()})
        losses = explorer.losses
        active = [r for r, found in proposed if found and not r.finished(losses)]
        _share(refinements, explorer)
    explorer.notes += [_alarm(r, explorer) for r in refinements if r.ratio(explorer.losses) > ALARM]

    def refit(losses: Mapping[Policy, float]) -> dict[Policy, str]:
        return {policy: "refit" for refinement in refinements for policy in refinement.refit(losses)}

    return refit


def _alarm(refinement: Refinement, explorer: Explorer) -> str:
    return (
        f"{refinement.limit}: the solver's first answer loses {refinement.ratio(explorer.losses):.1f} times the sum of "
        "its sensitivities, so they were measured again around the best policy"
    )


def _share(refinements: list[Refinement], explorer: Explorer) -> None:
    """Every limit hears the best multipliers of the others."""
    losses = explorer.losses
    vectors = [refinement.best_vector(losses) for refinement in refinements]
    for refinement in refinements:
        for other, vector in zip(refinements, vectors, strict=True):
            if vector is not None and other is not refinement:
                refinement.hear(vector)
