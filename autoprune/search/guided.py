"""The guided strategy: sensitivities, the solver's answers, and a refinement of every limit beside its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.allocation.additive import Additive
from autoprune.allocation.solver import Allocation, Solver, Widen, polished
from autoprune.records import Policy, SearchSpace
from autoprune.search.allocator import Allocator
from autoprune.search.explore import Explorer, Refit
from autoprune.search.refine import PER_ROUND, Refinement

_MOST_EVALUATIONS = 60
_FEWEST_ROUNDS = 5

_ALARM = 1.3
"""Measured over summed loss of the solver's answer above which the report says so."""

_FEW_SLOTS = 4
"""With more slots a round is proposed while the one before it runs, so that no slot waits for the slowest trial."""


@dataclass(frozen=True, kw_only=True)
class GuidedParts:
    """The parts of the guided strategy; another one makes a variant of it.

    `sensitivities` returns the loss of every level of every searched unit, `[levels]`, all others full. `solver` is
    made of a space and its additive costs. `widen` uses up what an answer leaves of its limit. `refinement` makes the
    `Refinement` of one limit.
    """

    sensitivities: Callable[[Explorer], Mapping[str, npt.NDArray[np.float64]]] = Explorer.sensitivities
    solver: Callable[[SearchSpace, Additive], Allocation] = Solver
    widen: Widen = polished
    refinement: Callable[..., Refinement] = Refinement


def guided(explorer: Explorer, parts: GuidedParts | None = None) -> Refit:
    """Score the uniform policies, measure the sensitivities, then refine all limits round by round.

    Returns:
        A function that proposes further policies from the losses of fine-tuned ones.
    """
    search, parts = explorer.search, parts or GuidedParts()
    uniform = dict.fromkeys(explorer.uniform.values(), "uniform")
    many = explorer.slots > _FEW_SLOTS
    if not many:
        explorer.score(uniform)  # otherwise in the first round: by themselves they would leave a cluster idle
    table = parts.sensitivities(explorer)
    solver = parts.solver(search.space, search.additive)
    allocator = Allocator(space=search.space, solver=solver, table=table, predict=search.predict, widen=parts.widen)
    evaluations, per_round = _rounds(search.effort.trials, len(search.limits), explorer.slots)
    refinements = [
        parts.refinement(allocator, limit, seed=search.run_seed, evaluations=evaluations, per_round=per_round)
        for limit in search.limits
    ]
    _refine(explorer, refinements, uniform, ahead=int(many))
    explorer.notes += [_alarm(r, explorer) for r in refinements if r.ratio(explorer.losses) > _ALARM]

    def refit(tuned: Mapping[Policy, float]) -> dict[Policy, str]:
        return {policy: "refit" for refinement in refinements for policy in refinement.refit(tuned, explorer.losses)}

    return refit


def _refine(explorer: Explorer, refinements: list[Refinement], first: Mapping[Policy, str], ahead: int) -> None:
    """Score rounds, in each of which every limit that still gains proposes policies from all losses so far.

    The first round scores the policies `first` as well, before all others and with their own origins.
    """
    active = refinements

    def propose() -> dict[Policy, str]:
        nonlocal active, first
        losses = explorer.losses
        proposals = [(refinement, refinement.propose(losses)) for refinement in active]
        active = [refinement for refinement, policies in proposals if policies]
        merged = {policy: origin for _, policies in proposals for policy, origin in policies.items()}
        wanted, first = {**first, **merged, **first}, {}
        return wanted

    explorer.score_rounds(propose, ahead)


def _rounds(trials: int, limits: int, slots: int) -> tuple[int, int]:
    """Return how many policies a limit evaluates, and how many are scored together.

    A limit needs at most 60. With more than four slots, one policy is scored for every slot, in at least five rounds,
    and more than 60 as far as `trials` allow. Up to four slots change neither number, so that they find the same.
    """
    wanted = math.ceil(slots / limits) if slots > _FEW_SLOTS else 0
    evaluations = min(max(_MOST_EVALUATIONS, _FEWEST_ROUNDS * wanted), math.ceil(trials / limits))
    return evaluations, max(PER_ROUND, min(wanted, evaluations // _FEWEST_ROUNDS))


def _alarm(refinement: Refinement, explorer: Explorer) -> str:
    return (
        f"{refinement.limit}: the solver's first answer loses {refinement.ratio(explorer.losses):.1f} times the sum of "
        "its sensitivities: units act together, and the refinement matters"
    )
