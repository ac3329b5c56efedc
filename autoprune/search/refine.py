"""Refinement of one limit: proposals around the solver's answer, all of which meet the limit.

The summed sensitivities leave out how units act together: at tight limits the solver's answer alone was once worse than
the best of 40 random policies. So its multipliers are searched: a third of the proposals comes from a regression of the
measured losses on the table and a third from an Optuna sampler, both through the solver. The last third are steps from
the best policy that no multipliers lead to (a few units a level up or down, moved onto the limit again), as in EvoPress
(Sieberling et al. 2024). Where measured and summed losses are far apart, the sensitivities are also measured again
around the best policy, one level up and down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from autoprune.budgets import Limit
from autoprune.records import Policy, digest_of
from autoprune.search.allocation import BOUND, REMOVAL, Allocator
from autoprune.search.limits import excess
from autoprune.search.repair import fit_to_limit
from autoprune.search.samplers import propose_multipliers

Array = npt.NDArray[np.float64]
Losses = Mapping[Policy, float]

PER_ROUND = 4
"""Proposals of one limit that are scored together, when there are few workers."""

ALARM = 1.3
"""Measured over summed loss of the solver's answer above which sensitivities are measured around the best policy."""

_DRY = 15
_LEAST_GAIN = 0.02
"""A limit is finished when so many evaluations have lowered its loss by less than this share."""

_BAND = 0.35
"""Policies that cost up to this share less than the limit tell the regression about it."""

_REMOVAL_PENALTIES = (0.0, 0.75, BOUND, np.inf)
"""Log-multipliers of all removals together that the first answers are solved with; the last one keeps all branches."""

_NOISE = (0.0, 0.2, 0.35)
_ATTEMPTS = 6

_FEWEST_TO_REFIT, _REFITTED = 4, 2
"""Fine-tuned policies near a limit that a regression needs, and new ones that it proposes at once."""

_LOCAL_ROUND = 3
_SWITCHED = 3
"""Units that a step from the best policy moves by a level."""


class Refinement:
    """Proposals for one limit. Deterministic: the same losses in the same order give the same proposals."""

    def __init__(
        self,
        allocator: Allocator,
        limit: Limit,
        *,
        seed: int,
        sampler: str,
        evaluations: int,
        per_round: int = PER_ROUND,
    ) -> None:
        self.limit = limit
        self._per_round = per_round
        self._allocator = allocator
        self._seed = int(digest_of([seed, limit.to_json()], length=8), 16)
        self._sampler = sampler
        self._evaluations = evaluations
        self._round = 0
        self._asked: list[Policy] = []
        self._vectors: dict[Policy, Array] = {}
        self._centre: Policy | None = None
        self._neighbours: list[Array] = []
        self.solution: Policy | None = None
        """The solver's answer to the plain sensitivities."""

    def finished(self, losses: Losses) -> bool:
        """Whether nothing more is proposed: all evaluations are used, or the last ones gained nothing."""
        if len(self._asked) >= self._evaluations:
            return True
        found = np.array([losses.get(policy, np.inf) for policy in self._asked])
        found = found[: 1 + np.flatnonzero(np.isfinite(found)).max(initial=-1)]  # those after it may still run
        dry = max(_DRY, self._per_round)
        before = found[:-dry].min(initial=np.inf)
        return len(found) > dry and bool(found[-dry:].min() > (1 - _LEAST_GAIN) * before)

    def best(self, losses: Losses) -> Policy | None:
        """The policy of least loss among those proposed for this limit."""
        scored = [policy for policy in self._asked if policy in losses]
        return min(scored, key=lambda policy: losses[policy], default=None)

    def best_vector(self, losses: Losses) -> Array | None:
        """Log-multipliers of the best policy, for the neighbours; `None` when it was not found by any."""
        best = self.best(losses)
        return self._vectors.get(best) if best is not None else None

    def ratio(self, losses: Losses) -> float:
        """Measured over summed loss at the solver's answer: how far units act together there; 1 while unknown."""
        if self.solution is None or self.solution not in losses:
            return 1.0
        summed = float(self._allocator.additive([self.solution])[0])
        return losses[self.solution] / summed if summed > 0 else 1.0

    def hear(self, vector: Array) -> None:
        """Multipliers that were best for a neighbouring limit: they are tried next."""
        if not any(np.allclose(vector, known, atol=0.05) for known in [*self._neighbours, *self._vectors.values()]):
            self._neighbours.append(vector)

    def due(self, losses: Losses) -> bool:
        """Whether the sensitivities are to be measured around the best policy before more is proposed."""
        unknown = self._round == _LOCAL_ROUND and self._centre is None
        return unknown and self.ratio(losses) > ALARM and self.best(losses) is not None

    def surroundings(self, losses: Losses) -> list[Policy]:
        """Policies to measure, whatever they cost, before the next proposals: the best one a level up and down."""
        if not self.due(losses):
            return []
        self._centre = self.best(losses)
        return list(self._allocator.space.neighbours(self._centre)) if self._centre is not None else []

    def propose(self, losses: Losses) -> dict[Policy, str]:
        """The next policies with their origin, none of them in `losses`; empty when nothing new is found."""
        found: dict[Policy, str] = {}
        for policy, origin, vector in self._proposals(losses):
            if len(found) == self._per_round or len(self._asked) >= self._evaluations:
                break
            if vector is not None:
                self._vectors.setdefault(policy, vector)
            if policy not in self._asked:
                self._asked.append(policy)
                if policy not in losses:
                    found[policy] = origin
        self._round += 1
        return found

    def _proposals(self, losses: Losses) -> Iterator[tuple[Policy, str, Array | None]]:
        if self._round == 0:
            yield from self._solutions()
        while self._neighbours:
            vector = self._neighbours.pop(0)
            yield from self._through(vector, "neighbour")
        if self._round == _LOCAL_ROUND and self._centre is not None:
            yield from ((policy, "local", None) for policy in self._local(self._centre, losses))
        for attempt in range(max(_ATTEMPTS, self._per_round)):
            yield from self._through(self._fitted(losses, attempt), "fit")
            yield from self._through(self._sampled(losses, attempt), "sampler")
            yield from self._switched(losses, attempt)

    def _solutions(self) -> Iterator[tuple[Policy, str, Array | None]]:
        """The solver's answer, those that remove fewer branches, and the next best, in two units at least apart.

        How many branches to remove is where a proxy and a fine-tuned model disagree most: some of each go on.
        """
        names = self._allocator.names
        plain = np.zeros(len(names))
        apart: list[Policy] = []
        for penalty in _REMOVAL_PENALTIES if REMOVAL in names else (0.0,):
            vector = np.append(plain[:-1], penalty) if REMOVAL in names else plain
            policy = self._allocator.allocate(vector, self.limit)
            if policy is not None and policy not in apart:
                self.solution = self.solution or policy
                yield policy, "solver", vector if np.isfinite(penalty) else None
                apart.append(policy)
        while apart and len(apart) < PER_ROUND:
            policy = self._allocator.allocate(plain, self.limit, apart)
            if policy is None or policy in apart:
                return
            yield policy, "solver", None
            apart.append(policy)

    def _through(self, vector: Array, origin: str) -> Iterator[tuple[Policy, str, Array | None]]:
        policy = self._allocator.allocate(vector, self.limit)
        if policy is not None:
            yield policy, origin, vector

    def refit(self, losses: Losses) -> list[Policy]:
        """New policies by a regression of the losses of fine-tuned ones: it knows what fine-tuning heals."""
        near = self._near(losses)
        if len(near) < _FEWEST_TO_REFIT:
            return []
        found: list[Policy] = []
        for attempt in range(_ATTEMPTS):
            policy = self._allocator.allocate(self._fitted(losses, attempt), self.limit)
            if policy is not None and policy not in losses and policy not in found:
                found.append(policy)
            if len(found) == _REFITTED:
                break
        self._round += 1
        return found

    def _fitted(self, losses: Losses, attempt: int) -> Array:
        near = self._near(losses)
        noise = _NOISE[min(attempt, len(_NOISE) - 1)]
        vector = self._allocator.fitted_multipliers(near)
        return np.clip(vector + noise * self._rng("fit", attempt).normal(size=len(vector)), -BOUND, BOUND)

    def _sampled(self, losses: Losses, attempt: int) -> Array:
        history = [(vector.tolist(), losses[p]) for p, vector in self._vectors.items() if p in losses]
        seed = int(self._rng("sampler", attempt).integers(2**31))
        return np.array(propose_multipliers(self._sampler, seed, self._allocator.names, history, BOUND))

    def _switched(self, losses: Losses, attempt: int) -> Iterator[tuple[Policy, str, Array | None]]:
        """The best policy with some units a level up or down, on the limit again."""
        centre = self.best(losses)
        if centre is None:
            return
        space, rng = self._allocator.space, self._rng("switch", attempt)
        widths = dict(centre.widths)
        for name in rng.choice(space.searched, size=min(_SWITCHED, len(space.searched)), replace=False):
            levels = space.levels[name]
            place = levels.index(widths[name]) + rng.choice((-1, 1))
            widths[name] = levels[int(np.clip(place, 0, len(levels) - 1))]
        policy = fit_to_limit(space.policy(widths), space, self._allocator.predict, self.limit, rng)
        if policy is not None:
            yield policy, "switch", None

    def _near(self, losses: Losses) -> dict[Policy, float]:
        """Losses of the policies that cost about as much as the limit allows."""
        policies = list(losses)
        if not policies:
            return {}
        beyond = excess(self._allocator.predict(policies), self.limit)
        return {p: losses[p] for p, x in zip(policies, beyond, strict=True) if -_BAND <= x <= _BAND / 2}

    def _local(self, centre: Policy, losses: Losses) -> Iterator[Policy]:
        """Best answers one level around a centre, by what was measured there."""
        space = self._allocator.space
        table = {name: np.full(len(space.levels[name]), np.inf) for name in space.searched}
        for name in space.searched:
            table[name][space.levels[name].index(centre.widths[name])] = 0.0
        for policy in self._allocator.space.neighbours(centre):
            if policy in losses:
                (name,) = [n for n in space.searched if policy.widths[n] != centre.widths[n]]
                table[name][space.levels[name].index(policy.widths[name])] = losses[policy] - losses[centre]
        apart = [centre]
        for _ in range(PER_ROUND // 2):
            policy = self._allocator.solved(table, self.limit, apart)
            if policy is None:
                return
            yield policy
            apart.append(policy)

    def _rng(self, *parts: object) -> np.random.Generator:
        return np.random.default_rng(int(digest_of([self._seed, self._round, *parts], length=12), 16))
