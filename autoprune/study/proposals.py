"""Proposals of a sampler, moved onto a limit before the study records them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from autoprune.allocation.limit_fitting import FitToLimit, fit_to_limit
from autoprune.allocation.limits import Predict, violation
from autoprune.budgets import Limit
from autoprune.records import Policy, SearchSpace, digest_of
from autoprune.study.optuna_private import generation_of, sampler_notes, write_sampler_notes
from autoprune.study.samplers import CONSTRAINT, Parameters, Projected, decode, distributions, encode, make_sampler
from autoprune.study.spec import StudySpec

PROPOSALS_PER_LIMIT = 8

_PROJECTIONS = 8


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A policy, its origin, and how far it is `beyond` the loosest limit, as a share.

    `attributes` are the sampler's own, which the study has to keep for it.
    """

    policy: Policy
    origin: str
    beyond: float
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Proposals:
    """Draws policies from a sampler that knows a copy of the study in memory.

    On a database, reading all finished trials for every proposal and writing every parameter in a transaction of its
    own took longer than the sampling. Trials have the same numbers in the study and in its copy. So the study must
    record every drawn policy as its next trial, and `tell` must be called for every trial that ends.

    Args:
        trials: all trials of the study, by number.
        notes: the property `notes` of the object that drew before; empty for a new study.
        study_spec: space, limits and seed.
        predict: costs of policies, `[P, K]`.
        sampler: a name of `SAMPLERS`.
        fit: moves a proposal onto a limit.
    """

    def __init__(
        self,
        trials: Sequence[FrozenTrial],
        notes: Mapping[str, Any],
        study_spec: StudySpec,
        predict: Predict,
        sampler: str,
        fit: FitToLimit = fit_to_limit,
    ) -> None:
        self._copy = optuna.create_study(directions=["minimize", "minimize"])
        self._copy.add_trials([_bare(trial, study_spec.space) for trial in trials])
        write_sampler_notes(self._copy, notes)
        self._study_spec = study_spec
        self._space = study_spec.space
        self._predict = predict
        self._sampler = sampler
        self._fit = fit
        self._parameters = distributions(self._space)

    def draw(self, slot: int, attempt: int, known: Collection[Policy], queued: tuple[Policy, str] | None) -> Proposal:
        """Return the `attempt`-th proposal for a slot; one of the `known` policies only if no other is reached.

        It depends on the ended trials, the run's seed, the slot and the attempt alone. A `queued` policy with its
        origin is proposed as it is, so that a genetic sampler counts it to its generation.
        """
        seed = int(digest_of([self._study_spec.run_seed, "proposal", slot, attempt], length=8), 16)
        limits = self._study_spec.limits
        # A limit near the floor admits few policies; after some attempts the slot goes to the next limit.
        turn = slot + attempt // PROPOSALS_PER_LIMIT

        def project(parameters: Parameters) -> Parameters:
            return self._unseen(parameters, limits[turn % len(limits)], known, np.random.default_rng(seed))

        sampler = Projected(make_sampler(self._sampler, seed), self._parameters, project)
        self._copy.sampler = sampler
        if queued:
            self._copy.enqueue_trial(encode(queued[0], self._space))
        trial = self._copy.ask(self._parameters)
        policy = decode(trial.params, self._space)
        beyond = violation(self._predict([policy])[0], limits)
        trial.set_constraint(CONSTRAINT, beyond)
        origin = queued[1] if queued else "repair" if sampler.moved else "sampler"
        return Proposal(policy=policy, origin=origin, beyond=beyond, attributes=generation_of(self._copy, trial))

    @property
    def notes(self) -> dict[str, Any]:
        """Attributes that the sampler wrote to the study: the parents of each generation, by number."""
        return sampler_notes(self._copy)

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None) -> None:
        """End a trial: the sampler knows its values from now on."""
        self._copy.tell(number, values, state=state)

    def _unseen(
        self, parameters: Parameters, limit: Limit, known: Collection[Policy], rng: np.random.Generator
    ) -> Parameters:
        """Move a proposal onto a limit, to a policy that is not known yet.

        Near the floor of the space many proposals lead to the same few policies, so the last four of eight moves start
        from random policies.
        """
        proposed, fitted = decode(parameters, self._space), None
        for attempt in range(_PROJECTIONS):
            if attempt >= _PROJECTIONS // 2:
                levels = self._space.levels
                places = [int(rng.integers(len(levels[name]))) for name in self._space.searched]
                proposed = self._space.at(places)
            fitted = self._fit(proposed, self._space, self._predict, limit, rng)
            if fitted is None or fitted not in known:
                break
        return parameters if fitted is None else encode(fitted, self._space)


def _bare(trial: FrozenTrial, space: SearchSpace) -> FrozenTrial:
    """Copy of a trial without its user attributes, which no sampler reads; its parameters are those of today."""
    today = distributions(space)
    complete = trial.params.keys() == today.keys()  # one that was enqueued by others may have no parameters
    return optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params=encode(decode(trial.params, space), space) if complete else trial.params,
        distributions=today if complete else trial.distributions,
        system_attrs=trial.system_attrs,
    )
