"""How trials pass through Ray Tune: what it asks for, and what it tells, wired to a `Handoff`.

Import it after the environment has what Ray reads at its import, as `ray.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from autoprune.executors.base import Factory, describe, guarded
from autoprune.executors.handoff import Handoff, Instruction
from autoprune.trials import TrialSpec


def tuner(handoff: Handoff, slots: int, factory: Factory, resources: Mapping[str, float], folder: str) -> tune.Tuner:
    """A run of Tune with `slots` actors of `resources` each, which keep nothing but temporary files in `folder`."""
    trainable = tune.with_parameters(_Trainable, factory=factory, versions=_versions())
    return tune.Tuner(
        tune.with_resources(trainable, dict(resources)),
        tune_config=tune.TuneConfig(
            search_alg=_Queue(handoff),
            scheduler=_KeepActors(slots),
            num_samples=-1,
            max_concurrent_trials=slots,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="search",
            stop=_Closing(handoff),
            storage_path=folder,
            callbacks=[_Watch(handoff)],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _name(trial: Trial) -> str:
    """A short name: the default spells out the whole policy."""
    return trial.trial_id


@dataclass(frozen=True)
class _Job:
    """A trial as Tune carries it in its config, short when printed."""

    spec: TrialSpec

    def __str__(self) -> str:
        return f"{self.spec.number}.{self.spec.attempt}"


class _Trainable(tune.Trainable):
    """An actor: prepares once, then runs one trial after the other."""

    def setup(self, config: dict[str, Any], factory: Factory | None = None, versions: Any = None) -> None:
        """Build the evaluator; what goes wrong is told by the first trial."""
        self._broken = _difference(versions)
        if self._broken is None:
            try:
                assert factory is not None
                self._evaluate = factory()
            except Exception as error:
                self._broken = f"a worker could not prepare for trials: {describe(error)}"

    def step(self) -> dict[str, Any]:
        """Run the trial of the config."""
        spec = self.config["job"].spec
        return {"trial_result": self._broken or guarded(self._evaluate, spec), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Nothing of a trial is left behind: the actor may take the next."""
        return True


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("autoprune", "torch", "numpy")}


def _difference(theirs: Mapping[str, str]) -> str | None:
    differences = [
        f"{name} {own} instead of {theirs[name]}" for name, own in _versions().items() if own != theirs[name]
    ]
    return f"a node has {', '.join(differences)}: install the same versions on every node" if differences else None


class _Unsaved:
    """Tune pickles what it is given, to restore it one day; that day never comes, and threads cannot be pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Queue(_Unsaved, Searcher):
    """Suggests what was submitted."""

    def __init__(self, handoff: Handoff) -> None:
        super().__init__()
        self._handoff = handoff

    def suggest(self, trial_id: str) -> Any:  # a config, `FINISHED`, or `None`
        """The next trial."""
        handed = self._handoff.next(trial_id)
        if isinstance(handed, TrialSpec):
            return {"job": _Job(handed)}
        return Searcher.FINISHED if handed is Instruction.END else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Told by the callback already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Closing(_Unsaved, tune.Stopper):
    """Ends Tune when the executor is closed."""

    def __init__(self, handoff: Handoff) -> None:
        self._handoff = handoff

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Trials end by themselves."""
        return False

    def stop_all(self) -> bool:
        """Whether the executor was closed."""
        return self._handoff.closing


class _KeepActors(_Unsaved, FIFOScheduler):
    """Keeps the actors of finished trials while the controller thinks about the next ones.

    By default all actors but one end with a batch, and the next batch pays for new processes and new evaluators.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self._slots = slots
        self._kept = False

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """There is no metric."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """With the first trial, tell Tune how many actors are wanted for good."""
        if not self._kept:
            self._kept = True
            cache = tune_controller._tune_controller._actor_cache
            cache.increase_max(trial.placement_group_factory, self._slots)


class _Watch(_Unsaved, tune.Callback):
    """Takes results out of Tune before it stores them, and ends what takes too long."""

    def __init__(self, handoff: Handoff) -> None:
        self._handoff = handoff

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End trials that are overdue."""
        self._handoff.end_overdue()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The time of a trial begins when its actor is ready."""
        actor: Any = trial.temporary_state.ray_actor
        self._handoff.started(trial.trial_id, lambda: ray.kill(actor))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass a result on; a model's weights do not go into Tune's snapshots."""
        self._handoff.done(trial.trial_id, result.pop("trial_result"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The actor is gone."""
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        self._handoff.worker_died(trial.trial_id, text)
