"""Trials on a Ray cluster, each a trial of Ray Tune. Only this file and `tune.py` import Ray.

Tune places trials, keeps their actors and notices when one is gone; it decides nothing. A searcher hands it what was
submitted, a callback takes what comes back, and its own retries are off, because the study would not record them: a
trial whose actor dies is returned as `lost`. Nothing that Tune writes is ever read again.

Call `cluster.authenticate` before this module is imported: Ray reads how to authenticate at its import.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.executors.base import Executor, Factory, describe, interrupts_later, worker_threads
from autoprune.executors.cluster import (
    SETTINGS,
    check_address,
    ending_with_us,
    room,
    unreachable,
)
from autoprune.executors.handoff import Handoff
from autoprune.temporary import TemporaryFolder
from autoprune.trials import TrialResult, TrialSpec

os.environ |= SETTINGS

import ray

from autoprune.executors.tune import tuner

_CLOSE_SECONDS = 20.0
"""Tune ends within 3 s, but waits up to 15 s for actors that do not, such as those of a node that is gone."""
_STARTS = 3
"""Ray gives its own processes 30 s to start, which a busy host may not be able to keep."""


class RayExecutor(Executor):
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
        self._folder = TemporaryFolder("ray")
        folder = str(self._folder.path)
        self._ours = not ray.is_initialized()
        if self._ours:
            join(address, wanted, workers, threads, [folder])
        try:
            fitting = room(ray.nodes(), wanted)
        except AutopruneError:
            self._leave()
            raise
        self.slots = min(workers or fitting, fitting)
        self.timeout_s = timeout_s
        self._handoff = Handoff(timeout_s)
        self._tuner = tuner(self._handoff, self.slots, factory, wanted, folder)
        self._thread = threading.Thread(target=self._fit, name="ray-tune", daemon=True)
        self._thread.start()

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial."""
        self._handoff.submit(spec)

    def wait(self) -> TrialResult:
        """Block until a trial has finished. `AutopruneError` when an actor cannot prepare, or Tune ends."""
        result = self._handoff.finished.get()
        if isinstance(result, TrialResult):
            return result
        self._handoff.finished.put(result)  # the next call gets the same reason
        raise AutopruneError(result)

    def close(self) -> None:
        """End running trials, Tune, and then the Ray instance if it is ours.

        Ray ends the whole process when a thread calls it after the instance was left. A thread that does not end keeps
        the instance until the process ends.
        """
        self._handoff.close()
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._leave()
        self._folder.close()

    def _leave(self) -> None:
        if self._ours:
            ray.shutdown()  # ends every actor of ours, and what Tune waits for

    def _fit(self) -> None:
        try:
            self._tuner.fit()
            reason = "it was closed"
        except (Exception, SystemExit) as error:  # Ray ends threads that wait for a cluster that is gone
            reason = describe(error)
        self._handoff.finished.put(f"Ray Tune has ended: {reason}. Run the same command again to go on.")


def join(
    address: str | None,
    wanted: Mapping[str, float],
    workers: int | None,
    threads: int,
    leftovers: Sequence[str] = (),
) -> None:
    """Join the cluster at an address, or start one of this host alone, after which no folder of `leftovers` stays."""
    check_address(address)
    options: dict[str, Any] = {"address": address} if address else {"include_dashboard": False, "address": "local"}
    if not address and workers:
        options |= {"num_cpus": math.ceil(workers * wanted["cpu"])}
    if address:  # its processes run already
        options |= {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)} | SETTINGS}}
    for attempt in range(1, _STARTS + 1):
        try:
            with (
                nullcontext() if address else ending_with_us(leftovers),
                worker_threads(threads),
                _own_termination(),
                interrupts_later(),
            ):
                ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
            return
        except KeyboardInterrupt:
            ray.shutdown()
            raise
        except Exception as error:  # of many types, also its own C++ ones
            ray.shutdown()
            if address or attempt == _STARTS:
                raise unreachable(address, error) from error


@contextmanager
def _own_termination() -> Iterator[None]:
    """Keep Ray from taking SIGTERM, with which it would end this process without any clean-up."""
    utils: Any = ray._private.utils  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
    terminate, take = signal.getsignal(signal.SIGTERM), getattr(utils, "set_sigterm_handler", None)
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        if take is not None:
            utils.set_sigterm_handler = take
        if threading.current_thread() is threading.main_thread():  # another version may take it otherwise
            signal.signal(signal.SIGTERM, terminate)
