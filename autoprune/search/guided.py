"""The guided strategy: sensitivities, the solver's answers, and a refinement of every limit beside its neighbours.

`GuidedProposals` says which policies are scored next, given the losses so far. The strategy of the controller and the
sampler for other studies (`autoprune.GuidedSampler`) both go by it, and so propose the same. The limits take turns: a
round has the proposals of one, and is proposed while the rounds right before it run (`GuidedProposals.ahead`).
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.allocation.additive import Additive
from autoprune.allocation.solver import Allocation, Solver, Widen, polished
from autoprune.budgets import Limit
from autoprune.records import Policy, SearchSpace
from autoprune.search.allocator import Allocator
from autoprune.search.explore import SENSITIVITY, Explorer, Refit, Search
from autoprune.search.refine import PER_ROUND, Losses, Refinement
from autoprune.search.sensitivity import anchor_policies, sensitivities

_MOST_EVALUATIONS = 60
_FEWEST_ROUNDS = 5

_ALARM = 1.3
"""Measured over summed loss of the solver's answer above which the report says so."""

_FEW_SLOTS = 4
"""With more slots two rounds of every limit run at the same time, so that no slot waits for the slowest trial."""

Table = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class GuidedParts:
    """The parts of the guided strategy; another one makes a variant of it.

    `anchors` returns the policies that are scored for the sensitivities, with their origins. `sensitivities` returns
    the loss of every level of every searched unit, `[levels]`, all others full, from the losses of the anchors. `prior`
    takes the place of both: it returns the sensitivities from the losses of the uniform policies. `solver` is made of a
    space and its additive costs. `widen` uses up what an answer leaves of its limit. `refinement` makes the
    `Refinement` of one limit.
    """

    anchors: Callable[[SearchSpace], Mapping[Policy, str]] = anchor_policies
    sensitivities: Callable[[SearchSpace, Losses, Collection[Policy]], Table] = sensitivities
    prior: Callable[[Search, Losses], Table] | None = None
    solver: Callable[[SearchSpace, Additive], Allocation] = Solver
    widen: Widen = polished
    refinement: Callable[..., Refinement] = Refinement


class GuidedProposals:
    """Rounds of policies: the baselines, those of the sensitivities, then policies of one limit after the other, as
    long as it gains.

    Deterministic: the same losses at every round give the same policies.

    Args:
        search: space, costs, limits, effort and seed.
        first: policies that are scored first, with their origins; see `explore.first_scored`.
        slots: how many trials run at the same time.
        parts: those of a variant of the strategy.
        endless: go on, with what is expected to gain most, when no limit is expected to gain much any more.
    """

    def __init__(
        self,
        search: Search,
        first: Mapping[Policy, str],
        *,
        slots: int = 1,
        parts: GuidedParts | None = None,
        endless: bool = False,
    ) -> None:
        self._search, self._parts, self._slots, self._endless = search, parts or GuidedParts(), slots, endless
        self.ahead = 2 * len(search.limits) - 1 if slots > _FEW_SLOTS else 1
        """Rounds that may be unfinished when the next one is proposed, which therefore does not know their losses."""
        self._anchors = {} if self._parts.prior else dict(self._parts.anchors(search.space))
        # By themselves the baselines would leave a cluster idle: there they are part of a later round.
        apart = bool(slots > _FEW_SLOTS and self._anchors)
        self._opening = deque(policies for policies in ({} if apart else first, self._anchors) if policies)
        self._with_next = first if apart else {}
        self._refinements: list[Refinement] = []
        self._active = deque[Refinement]()
        """The limits that still gain, the one whose turn is next first."""
        self._running = deque[Mapping[Policy, str]](maxlen=self.ahead)
        self.table: Table | None = None
        """Sensitivities of every searched unit, `[levels]`, once they are measured."""

    @property
    def opening(self) -> bool:
        """Whether the next round needs no losses."""
        return bool(self._opening)

    @property
    def waits(self) -> bool:
        """Whether the next round needs the losses of all rounds before it; later ones need those that are known."""
        return not self._opening and self.table is None

    def propose(self, losses: Losses) -> dict[Policy, str]:
        """Return the policies of the next round with their origins; none when the search is at its end.

        Args:
            losses: of all policies that were scored, also such as were not proposed here. Policies of the rounds before
                that are missing failed, or run. Losses of the last `ahead` rounds change nothing, so that it does not
                matter whether they are there yet.
        """
        if self._opening:
            return dict(self._opening.popleft())
        running = dict.fromkeys(policy for policies in self._running for policy in policies)
        known = [p for p in dict.fromkeys((*self._anchors, *losses)) if p in losses and p not in running]
        losses = {policy: losses[policy] for policy in known}
        if self.table is None:
            self._learn(losses)
        proposed = self._refine(losses, running)
        if not proposed and self._endless:
            for refinement in self._refinements:
                refinement.go_on()
            self._active.extend(self._refinements)
            proposed = self._refine(losses, running)
        self._running.append(proposed)
        return proposed

    def refit(self, tuned: Losses, losses: Losses) -> dict[Policy, str]:
        """Return further policies from the losses of fine-tuned ones, with their origin."""
        return {policy: "refit" for refinement in self._refinements for policy in refinement.refit(tuned, losses)}

    def alarms(self, losses: Losses) -> list[str]:
        """Return a sentence for every limit at which units act together more than the solver can know, or policies are
        few.
        """
        together = [_alarm(r, losses) for r in self._refinements if r.ratio(losses) > _ALARM]
        return [*together, *(_few(r.limit, r.choice) for r in self._refinements if r.choice is not None)]

    def _learn(self, losses: Losses) -> None:
        """Compute the sensitivities, and begin the refinement of every limit."""
        search, parts = self._search, self._parts
        if parts.prior:
            self.table = parts.prior(search, losses)
        else:
            measured = {policy: losses[policy] for policy in self._anchors if policy in losses}
            self.table = parts.sensitivities(search.space, measured, self._anchors)
        solver = parts.solver(search.space, search.additive)
        allocator = Allocator(
            space=search.space,
            solver=solver,
            table=self.table,
            predict=search.cautious or search.predict,
            widen=parts.widen,
        )
        evaluations, per_round = _rounds(search.effort.trials, len(search.limits), self._slots)
        evaluations = sys.maxsize if self._endless else evaluations
        self._refinements = [
            parts.refinement(allocator, limit, seed=search.run_seed, evaluations=evaluations, per_round=per_round)
            for limit in search.limits
        ]
        self._active.extend(self._refinements)

    def _refine(self, losses: Losses, running: Collection[Policy]) -> dict[Policy, str]:
        """Return what the next limit that still gains proposes from these losses, while other policies run."""
        proposed: dict[Policy, str] = {}
        while self._active and not proposed:
            refinement = self._active.popleft()
            proposed = refinement.propose(losses, running)
            self._active.extend([refinement] if proposed else [])
        first, self._with_next = self._with_next, {}
        return {**first, **proposed, **first}


def guided(explorer: Explorer, parts: GuidedParts | None = None) -> Refit:
    """Score the baselines, measure the sensitivities, then refine all limits round by round.

    Returns:
        A function that proposes further policies from the losses of fine-tuned ones.
    """
    proposals = GuidedProposals(explorer.search, explorer.baselines, slots=explorer.slots, parts=parts)
    while proposals.opening:
        policies = proposals.propose(explorer.losses)
        if SENSITIVITY in policies.values():
            explorer.score_apart(list(policies))
        else:
            explorer.score(policies)
    explorer.score_rounds(lambda: proposals.propose(explorer.losses), proposals.ahead)
    explorer.table = proposals.table
    explorer.notes += proposals.alarms(explorer.losses)
    return lambda tuned: proposals.refit(tuned, explorer.losses)


def _rounds(trials: int, limits: int, slots: int) -> tuple[int, int]:
    """Return how many policies a limit evaluates, and how many are scored together.

    A limit needs at most 60. With more than four slots, one policy is scored for every slot, in at least five rounds,
    and more than 60 as far as `trials` allow. Up to four slots change neither number, so that they find the same.
    """
    wanted = math.ceil(slots / limits) if slots > _FEW_SLOTS else 0
    evaluations = min(max(_MOST_EVALUATIONS, _FEWEST_ROUNDS * wanted), math.ceil(trials / limits))
    return evaluations, max(PER_ROUND, min(wanted, evaluations // _FEWEST_ROUNDS))


def _alarm(refinement: Refinement, losses: Losses) -> str:
    return (
        f"within {refinement.limit}, units act together: the first answer of the solver loses "
        f"{refinement.ratio(losses):.1f} times as much as its units lose one by one, so policies around it are tried"
    )


def _few(limit: Limit, count: int) -> str:
    found = "a single policy of this space was" if count == 1 else f"no more than {count} policies of this space were"
    return (
        f"within {limit}, {found} found, so there was little to choose from: give a looser budget, or a space with "
        "more levels"
    )
