"""Trials on a Ray cluster, each of them a trial of Ray Tune. The only file that imports Ray.

Tune places trials, keeps their actors and notices when one is gone; it decides nothing. A searcher hands it what was
submitted, a callback takes what comes back, and its own retries are off, because the study would not know of them: a
trial whose actor dies is returned as `lost`. Nothing that Tune writes is ever read again.

Call `cluster.authenticate` before this module is imported: Ray reads how to authenticate at its import.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from autoprune.errors import AutopruneError
from autoprune.search.executors.base import Factory, describe, guarded, worker_environment
from autoprune.search.executors.cluster import (
    SETTINGS,
    check_address,
    end_with_us,
    room,
    unreachable,
)
from autoprune.search.executors.link import Link, Order
from autoprune.trials import TrialResult, TrialSpec

os.environ |= SETTINGS

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

_CLOSE_SECONDS = 5.0
_STARTS = 3
"""Ray gives its own processes 30 s to start, which a busy host may not be able to keep."""


class RayExecutor:
    """Trials as actors of `resources` each (default: one CPU), on the cluster at `address` or a new one of this host.

    `factory` must be picklable; it goes to every node once, through the object store, and every actor calls it once. At
    most `workers` run at the same time (default: as many as fit). A trial that takes longer than `timeout_s` is ended,
    and lost. Raises `AutopruneError` when the cluster cannot be joined or no node of it is large enough.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        address: str | None = None,
        resources: Mapping[str, float] | None = None,
        workers: int | None = None,
        threads: int = 1,
        timeout_s: float | None = None,
    ) -> None:
        wanted = {"cpu": 1.0} | dict(resources or {})
        self._folder = TemporaryDirectory(prefix="autoprune-ray-")
        self._ours = not ray.is_initialized()
        if self._ours:
            join(address, wanted, workers, threads)
        try:
            fitting = room(ray.nodes(), wanted)
        except AutopruneError:
            self._leave()
            raise
        self.slots = min(workers or fitting, fitting)
        self._link = Link(timeout_s)
        self._tuner = _tuner(self._link, self.slots, factory, wanted, self._folder.name)
        self._thread = threading.Thread(target=self._fit, name="ray-tune", daemon=True)
        self._thread.start()

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial."""
        self._link.submit(spec)

    def wait(self) -> TrialResult:
        """Block until a trial has finished. `AutopruneError` when an actor cannot prepare, or Tune ends."""
        found = self._link.finished.get()
        if isinstance(found, TrialResult):
            return found
        self._link.finished.put(found)  # whoever asks again is told again
        raise AutopruneError(found)

    def close(self) -> None:
        """End running trials, Tune, and the Ray instance if it is ours."""
        self._link.close()
        self._leave()
        self._thread.join(_CLOSE_SECONDS)
        self._folder.cleanup()

    def _leave(self) -> None:
        if self._ours:
            ray.shutdown()  # ends every actor of ours, and what Tune waits for

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fit(self) -> None:
        try:
            self._tuner.fit()
            reason = "it was closed"
        except Exception as error:
            reason = describe(error)
        self._link.finished.put(f"Ray Tune has ended: {reason}. Run the same command again to go on.")


def join(address: str | None, wanted: Mapping[str, float], workers: int | None, threads: int) -> None:
    """Join the cluster at an address, or start one of this host alone."""
    check_address(address)
    options: dict[str, Any] = {"address": address} if address else {"include_dashboard": False, "address": "local"}
    if not address and workers:
        options |= {"num_cpus": math.ceil(workers * wanted["cpu"])}
    if address:  # its processes run already
        options |= {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)} | SETTINGS}}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        for attempt in range(1, _STARTS + 1):
            try:
                with worker_environment(threads):
                    ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
                break
            except Exception as error:  # of many types, also its own C++ ones
                ray.shutdown()
                if address or attempt == _STARTS:
                    raise unreachable(address, error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray takes it, and would end without any clean-up
    if not address:
        end_with_us(session_name())


def session_name() -> str:
    """The name of the session that this process is part of: it is in the command line of all its processes."""
    worker: Any = ray._private.worker  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
    return Path(worker.global_worker.node.get_session_dir_path()).name


def _tuner(link: Link, slots: int, factory: Factory, resources: Mapping[str, float], folder: str) -> tune.Tuner:
    trainable = tune.with_parameters(_Trainable, factory=factory, versions=_versions())
    return tune.Tuner(
        tune.with_resources(trainable, dict(resources)),
        tune_config=tune.TuneConfig(
            search_alg=_Queue(link),
            scheduler=_KeepActors(slots),
            num_samples=-1,
            max_concurrent_trials=slots,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="search",
            stop=_Closing(link),
            storage_path=folder,
            callbacks=[_Watch(link)],
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
        return {"found": self._broken or guarded(self._evaluate, spec), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Nothing of a trial is left behind: the actor may take the next."""
        return True


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("autoprune", "torch", "numpy")}


def _difference(theirs: Mapping[str, str]) -> str | None:
    found = [f"{name} {own} instead of {theirs[name]}" for name, own in _versions().items() if own != theirs[name]]
    return f"a node has {', '.join(found)}: install the same versions on every node" if found else None


class _Unsaved:
    """Tune pickles what it is given, to restore it one day; that day never comes, and threads cannot be pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Queue(_Unsaved, Searcher):
    """Suggests what was submitted."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def suggest(self, trial_id: str) -> Any:  # a config, `FINISHED`, or `None`
        """The next trial."""
        found = self._link.next(trial_id)
        if isinstance(found, TrialSpec):
            return {"job": _Job(found)}
        return Searcher.FINISHED if found is Order.END else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Told by the callback already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Closing(_Unsaved, tune.Stopper):
    """Ends Tune when the executor is closed."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Trials end by themselves."""
        return False

    def stop_all(self) -> bool:
        """Whether the executor was closed."""
        return self._link.closing


class _KeepActors(_Unsaved, FIFOScheduler):
    """Keeps the actors of finished trials while the controller thinks about the next ones.

    By default all but one of them end with a batch, and the next batch pays for new processes and new evaluators.
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

    def __init__(self, link: Link) -> None:
        self._link = link

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End trials that are overdue."""
        self._link.end_overdue()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The time of a trial begins when its actor is ready."""
        actor: Any = trial.temporary_state.ray_actor
        self._link.started(trial.trial_id, lambda: ray.kill(actor))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass a result on; a model's weights do not go into Tune's snapshots."""
        self._link.done(trial.trial_id, result.pop("found"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The actor is gone."""
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        self._link.worker_died(trial.trial_id, text)
