"""What a sampler proposes, moved onto a limit before the study records it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import optuna

from autoprune.budgets import Limit
from autoprune.records import Policy, digest_of
from autoprune.search.limits import Predict
from autoprune.search.question import Question
from autoprune.search.repair import fit_to_limit
from autoprune.search.samplers import Parameters, Projected, decode, distributions, encode, make_sampler

PROPOSALS_PER_LIMIT = 8

_PROJECTIONS = 8


class Proposals:
    """Draws the trials of one study, those that wait in its queue first."""

    def __init__(self, study: optuna.Study, question: Question, predict: Predict, sampler: str) -> None:
        self._study = study
        self._question = question
        self._space = question.space
        self._predict = predict
        self._sampler = sampler
        self._parameters = distributions(self._space)

    def draw(self, slot: int, attempt: int, known: Collection[Policy]) -> tuple[optuna.Trial, Policy]:
        """The `attempt`-th proposal for a slot, not one of the `known` policies if others are found; a new trial.

        It depends on the study, the run's seed, the slot and the attempt alone.
        """
        seed = int(digest_of([self._question.run_seed, "proposal", slot, attempt], length=8), 16)
        limits = self._question.limits
        # A limit near the floor admits few policies; after some attempts the slot goes to the next limit.
        turn = slot + attempt // PROPOSALS_PER_LIMIT

        def project(parameters: Parameters) -> Parameters:
            return self._unseen(parameters, limits[turn % len(limits)], known, np.random.default_rng(seed))

        sampler = Projected(make_sampler(self._sampler, seed), self._parameters, project)
        self._study.sampler = sampler
        trial = self._study.ask(self._parameters)
        policy = decode(trial.params, self._space)
        if "origin" not in trial.user_attrs:
            trial.set_user_attr("origin", "repair" if sampler.moved else "sampler")
        trial.set_user_attr("digest", policy.digest())
        return trial, policy

    def _unseen(
        self, parameters: Parameters, limit: Limit, known: Collection[Policy], rng: np.random.Generator
    ) -> Parameters:
        """A proposal moved onto a limit, to a policy that is not known yet; from a random start if need be.

        Near the floor of the space many proposals lead to the same few policies.
        """
        proposed, fitted = decode(parameters, self._space), None
        for attempt in range(_PROJECTIONS):
            if attempt >= _PROJECTIONS // 2:
                levels = self._space.levels
                proposed = self._space.policy({name: int(rng.choice(levels[name])) for name in self._space.searched})
            fitted = fit_to_limit(proposed, self._space, self._predict, limit, rng)
            if fitted is None or fitted not in known:
                break
        return parameters if fitted is None else encode(fitted, self._space)
