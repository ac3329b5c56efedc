"""Refinement of one limit: proposals beyond the solver's answer, all of which meet the limit.

The summed sensitivities leave out how units act together: at tight limits the solver's answer alone was once worse than
the best of 40 random policies. So a surrogate learns from all scored policies, for any limit, and the policies
of most expected gain are scored next. They are bred by steps from the best known policies, a few units a level up or
down, over some generations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from autoprune.allocation.limit_fitting import fit_to_limit
from autoprune.allocation.limits import excess, fits
from autoprune.allocation.solver import polished_together
from autoprune.budgets import Limit
from autoprune.records import Policy, SearchSpace, digest_of
from autoprune.search.allocator import Allocator
from autoprune.search.surrogate import Surrogate, conditioned, expected_gain
from autoprune.study.spec import SMALLEST_LOSS

Losses = Mapping[Policy, float]

PER_ROUND = 2
"""Proposals of one limit that are scored together, when there are few workers."""

_FEWEST, _LEAST_GAIN = 12, 0.005
"""A limit is finished when, after so many evaluations, no policy is expected to save this share of the loss."""

_REMOVALS = (1.0, 2.0, 4.5, np.inf)
"""Factors on what removals lose that the first answers are solved with; the last one keeps all branches."""

_SOLUTIONS = 4
"""Answers of the solver, for all ways to count removals together, that are scored first."""

_MOST_LEARNED = 300
"""The surrogate learns from so many policies, those that cost closest to the limit."""

_GENERATIONS, _PARENTS, _CHILDREN = 8, 24, 6
_MOST_STEPS = 4
"""Units that a child differs in from its parent, by a level each."""

_CONSIDERED = 3
"""Policies whose gains are compared, for each one that is proposed."""

_DRAWN = 32
"""Random policies that are tried before a limit counts as exhausted."""

_FEWEST_TO_REFIT, _REFITTED = 4, 2
"""Fine-tuned policies that a refit needs, and new ones that it proposes for a limit."""


Steps = Callable[[Sequence[Policy], SearchSpace, np.random.Generator], Sequence[Policy]]
"""The signature of `steps`."""


def steps(policies: Sequence[Policy], space: SearchSpace, rng: np.random.Generator) -> list[Policy]:
    """Some policies near each of these, with a few units a level up or down, or a few layers treated otherwise."""
    names = space.searched
    counts = np.array([len(space.levels[name]) for name in names])
    starts = np.repeat([space.places(policy) for policy in policies], _CHILDREN, axis=0)
    order = rng.random(starts.shape).argsort(axis=1)
    moved = order < rng.integers(1, _MOST_STEPS + 1, size=(len(starts), 1))
    places = np.clip(starts + moved * rng.choice((-1, 1), size=starts.shape), 0, counts - 1)
    # Treatments have no order, so of three or more any other one is a step away.
    layers = np.isin(names, space.layer_names) & (counts > 2)
    if layers.any():
        others = (starts + rng.integers(1, np.maximum(counts, 2), size=starts.shape)) % counts
        places = np.where(moved & layers, others, places)
    return [space.at(place) for place in places.tolist()]


class Refinement:
    """Proposals for one limit. Deterministic: the same losses in the same order give the same proposals.

    Args:
        allocator: gives the solver's answers, and prices policies.
        limit: every proposal fits it.
        seed: seed of the random steps.
        evaluations: proposals of all rounds together, at most.
        per_round: proposals of a round, at most; the first round has four if that is more.
        surrogate: predicts the losses of policies from those that are known.
        steps: breeds new policies near the best known ones.
    """

    def __init__(
        self,
        allocator: Allocator,
        limit: Limit,
        *,
        seed: int,
        evaluations: int,
        per_round: int = PER_ROUND,
        surrogate: type[Surrogate] = Surrogate,
        steps: Steps = steps,
    ) -> None:
        self.limit = limit
        self._allocator = allocator
        self._seed = int(digest_of([seed, limit.to_json()], length=8), 16)
        self._evaluations = evaluations
        self._per_round = per_round
        self._surrogate = surrogate
        self._steps = steps
        self._round = 0
        self._least_gain = _LEAST_GAIN
        self._asked: list[Policy] = []
        self._exhausted, self._found = False, 0
        self.solution: Policy | None = None
        """The solver's answer to the plain sensitivities."""

    @property
    def choice(self) -> int | None:
        """How many policies the limit left to choose from, where they ended before the search did; else `None`."""
        return self._found if self._exhausted and self._found < _FEWEST else None

    def ratio(self, losses: Losses) -> float:
        """Measured over summed loss at the solver's answer: how far units act together there; 1 while unknown."""
        if self.solution is None or self.solution not in losses:
            return 1.0
        summed = float(self._allocator.additive([self.solution])[0])
        return losses[self.solution] / summed if summed > 0 else 1.0

    def propose(self, losses: Losses, running: Collection[Policy] = ()) -> dict[Policy, str]:
        """Return the next policies, none in `losses`, with their origins; none when no policy is worth a trial.

        Args:
            losses: of all policies that are known.
            running: policies whose losses will be known soon, for any limit.
        """
        origins: dict[Policy, str] = {}
        most = self._per_round if self._round else max(self._per_round, _SOLUTIONS)
        for policy, origin in self._proposals(losses, running):
            if len(origins) == most or len(self._asked) >= self._evaluations:
                break
            if policy not in self._asked:
                self._asked.append(policy)
                if policy not in losses:
                    origins[policy] = origin
        self._round += 1
        return origins

    def go_on(self) -> None:
        """Propose further policies, however little is expected of them."""
        self._least_gain = -np.inf

    def refit(self, tuned: Losses, losses: Losses) -> list[Policy]:
        """New policies by the losses of fine-tuned ones; their trend is what was expected before fine-tuning."""
        if len(tuned) < _FEWEST_TO_REFIT:
            return []
        space, table = self._allocator.space, self._allocator.table
        before = self._learned(losses)
        surrogate = self._surrogate(space, table, tuned, before.mean)
        promising = self._most_promising(surrogate, tuned, [], _REFITTED)
        self._round += 1
        return [policy for policy, _ in promising]

    def _proposals(self, losses: Losses, running: Collection[Policy]) -> Iterator[tuple[Policy, str]]:
        if self._round == 0:
            yield from self._solutions()
        yield from self._expected(losses, running)

    def _solutions(self) -> Iterator[tuple[Policy, str]]:
        """The solver's answer, those that remove fewer branches, and the next best, in two units at least apart.

        How many branches to remove is where a proxy and a fine-tuned model disagree most: some of each go on.
        """
        apart: list[Policy] = []
        for factor in _REMOVALS if self._allocator.removable else _REMOVALS[:1]:
            policy = self._allocator.allocate(self.limit, removals=factor)
            if policy is not None and policy not in apart:
                self.solution = self.solution or policy
                apart.append(policy)
                yield policy, "solver"
        while apart and len(apart) < _SOLUTIONS:
            policy = self._allocator.allocate(self.limit, differ_from=apart)
            if policy is None or policy in apart:
                return
            apart.append(policy)
            yield policy, "solver"

    def _expected(self, losses: Losses, running: Collection[Policy]) -> Iterator[tuple[Policy, str]]:
        """Policies of most expected gain, until the largest gain is too small."""
        waiting = [policy for policy in dict.fromkeys((*self._asked, *running)) if policy not in losses]
        count = min(self._per_round, self._evaluations - len(self._asked))
        promising = self._most_promising(self._learned(losses), losses, waiting, count)
        self._exhausted = count > 0 and not promising
        self._found = len(self._fitting([*losses, *waiting]))
        if len(self._asked) < max(_FEWEST, 2 * self._per_round) or (promising and promising[0][1] >= self._least_gain):
            yield from ((policy, "surrogate") for policy, _ in promising)

    def _learned(self, losses: Losses) -> Surrogate:
        """From the policies that cost closest to the limit, on either side."""
        policies = list(losses)
        if len(policies) > _MOST_LEARNED:
            near = np.argsort(np.abs(excess(self._allocator.predict(policies), self.limit)), kind="stable")
            policies = [policies[place] for place in sorted(near[:_MOST_LEARNED])]
        known = {policy: losses[policy] for policy in policies}
        return self._surrogate(self._allocator.space, self._allocator.table, known)

    def _most_promising(
        self, surrogate: Surrogate, losses: Losses, waiting: Sequence[Policy], count: int
    ) -> list[tuple[Policy, float]]:
        """New policies within the limit with their expected gains, each as if the ones before it were measured.

        Neither in `losses` nor among the `waiting` ones, which are as good as measured, too.
        """
        scored = self._fitting(list(losses))
        parents = sorted(scored, key=lambda policy: losses[policy])[:_PARENTS] or self._asked
        if not parents or count < 1:
            return []
        least = losses[parents[0]] if scored else np.exp(surrogate.mean(parents).min())
        best = float(np.log(max(least, SMALLEST_LOSS)))
        bred = self._bred(surrogate, best, parents)
        old = {*losses, *waiting}
        new = self._widened(bred, old, _CONSIDERED * count) or self._widened(self._drawn(), old, _CONSIDERED * count)
        if not new:
            return []
        mean, covariance = surrogate.posterior([*waiting, *new])
        for place in range(len(waiting)):
            covariance = conditioned(covariance, place)
        promising: list[tuple[Policy, float]] = []
        for _ in range(min(count, len(new))):
            gains = expected_gain(best - mean, np.diag(covariance))[len(waiting) :]
            gains[[new.index(policy) for policy, _ in promising]] = -np.inf
            place = int(gains.argmax())
            promising.append((new[place], float(gains[place])))
            covariance = conditioned(covariance, len(waiting) + place)
        return promising

    def _bred(self, surrogate: Surrogate, best: float, parents: Sequence[Policy]) -> list[Policy]:
        """Policies within the limit that are not proposed yet, those of most expected gain first."""
        rng = np.random.default_rng(int(digest_of([self._seed, self._round], length=12), 16))
        gains, old = dict(zip(parents, surrogate.gain(parents, best), strict=True)), set(parents)
        for _ in range(_GENERATIONS):
            fittest = sorted(gains, key=lambda policy: -gains[policy])[:_PARENTS]
            born = dict.fromkeys(self._steps(fittest, self._allocator.space, rng))
            children = self._fitting([policy for policy in born if policy not in gains])
            gains |= dict(zip(children, surrogate.gain(children, best), strict=True)) if children else {}
        return [p for p in sorted(gains, key=lambda policy: -gains[policy]) if p not in old]

    def _widened(self, policies: Sequence[Policy], old: Collection[Policy], count: int) -> list[Policy]:
        """The first `count` or more policies, with all that costs nothing given back, that are not among the old ones.

        Many become the same one, most of all where treatments are searched and few policies are left within the limit.
        """
        found: dict[Policy, None] = {}
        for first in range(0, len(policies), count):
            part, allocator = policies[first : first + count], self._allocator
            wide = polished_together(part, allocator.space, allocator.predict, self.limit)
            found |= dict.fromkeys(policy for policy in wide if policy not in old)
            if len(found) >= count:
                break
        return list(found)

    def _drawn(self) -> list[Policy]:
        """Random policies on the limit, for the case that no steps lead from the known ones to another one."""
        allocator, space = self._allocator, self._allocator.space
        rng = np.random.default_rng(int(digest_of([self._seed, self._round, "drawn"], length=12), 16))
        drawn = [space.at([int(rng.integers(len(space.levels[n]))) for n in space.searched]) for _ in range(_DRAWN)]
        fitted = [fit_to_limit(policy, space, allocator.predict, self.limit, rng) for policy in drawn]
        return [policy for policy in fitted if policy is not None]

    def _fitting(self, policies: Sequence[Policy]) -> list[Policy]:
        if not policies:
            return []
        inside = fits(self._allocator.predict(policies), self.limit)
        return [policy for policy, fitting in zip(policies, inside, strict=True) if fitting]
