"""The study of one rung as the broker writes it, and its copy in memory that a sampler proposes from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from autoprune.allocation.limit_fitting import FitToLimit
from autoprune.allocation.limits import Predict
from autoprune.records import Policy
from autoprune.study.optuna_private import close_storage, study_id, trial_id
from autoprune.study.proposals import Proposal, Proposals
from autoprune.study.samplers import constraint, distributions, encode
from autoprune.study.spec import StudySpec, objectives
from autoprune.trials import TrialResult

_NOTES = "sampler_notes"
_LOST = "controller lost"
_STATES = {"infeasible": TrialState.PRUNED, "failed": TrialState.FAIL}


class Ledger:
    """Writes trials and how they end, every step in one transaction.

    A trial is known by its number. Opening gives up trials that a dead controller neither handed out nor finished.
    """

    def __init__(self, storage: BaseStorage, study: optuna.Study, study_spec: StudySpec) -> None:
        self._storage = storage
        self._study = study
        self._study_spec = study_spec
        self._parameters = distributions(study_spec.space)
        self._proposals: Proposals | None = None
        self._ids: dict[int, int] = {}
        for trial in study.get_trials(deepcopy=False):
            if not trial.state.is_finished():
                self._ids[trial.number] = trial_id(trial)
                if not {"result", "slot"} & trial.user_attrs.keys():
                    self._set(trial.number, "reason", _LOST)
                    self._end(trial.number, TrialState.FAIL, None)

    def trials(self) -> list[FrozenTrial]:
        """All trials, as they were recorded."""
        return self._study.get_trials(deepcopy=False)

    def open_sampler(self, name: str, predict: Predict, fit: FitToLimit) -> None:
        """Propose by this sampler from now on, which knows the trials that are finished."""
        notes = self._study.user_attrs.get(_NOTES, {})
        self._proposals = Proposals(self.trials(), notes, self._study_spec, predict, name, fit)

    def draw(self, slot: int, attempt: int, known: Collection[Policy], queued: tuple[Policy, str] | None) -> Proposal:
        """Return the next proposal of the sampler (see `Proposals.draw`); it must be recorded next."""
        assert self._proposals is not None
        before = self._proposals.notes
        proposal = self._proposals.draw(slot, attempt, known, queued)
        if self._proposals.notes != before:
            self._study.set_user_attr(_NOTES, self._proposals.notes)
        return proposal

    def add(
        self,
        proposal: Proposal,
        state: TrialState = TrialState.RUNNING,
        values: Sequence[float] | None = None,
        **attributes: Any,
    ) -> int:
        """Record a new trial; returns its number."""
        policy = proposal.policy
        trial = optuna.trial.create_trial(
            state=state,
            values=values,
            params=encode(policy, self._study_spec.space),
            distributions=self._parameters,
            user_attrs={"origin": proposal.origin, "digest": policy.digest(), **attributes},
            system_attrs={**proposal.attributes, **constraint(proposal.beyond)},
        )
        key = self._storage.create_new_trial(study_id(self._study), trial)
        number = self._storage.get_trial_number_from_id(key)
        if not state.is_finished():
            self._ids[number] = key
        elif self._proposals is not None:
            self._proposals.tell(number, state, values)
        return number

    def write_attempts(self, number: int, attempts: Sequence[dict[str, Any]]) -> None:
        """Record how the attempts of a running trial ended."""
        self._set(number, "attempts", list(attempts))

    def write(self, result: TrialResult) -> None:
        """Record the result of a running trial; proposals do not know of it yet."""
        self._set(result.number, "result", result.to_json())

    def tell(self, result: TrialResult) -> None:
        """End a trial whose result was written: from now on proposals know of it."""
        values = objectives(result.measurement) if result.measurement else None
        self._end(result.number, _STATES.get(result.status, TrialState.COMPLETE), values)

    def exhausted(self) -> dict[str, int]:
        """How many trials the space had, by how many were asked for."""
        return dict(self._study.user_attrs.get("exhausted", {}))

    def write_exhausted(self, asked: int, reached: int) -> None:
        """Record that of `asked` trials the sampler reached only `reached` different policies."""
        self._study.set_user_attr("exhausted", {str(asked): reached})

    def close(self) -> None:
        """Release the storage."""
        close_storage(self._storage)

    def _set(self, number: int, name: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._ids[number], name, value)

    def _end(self, number: int, state: TrialState, values: Sequence[float] | None) -> None:
        self._storage.set_trial_state_values(self._ids.pop(number), state, values)
        if self._proposals is not None:
            self._proposals.tell(number, state, values)
