"""Trials in spawned worker processes on this machine.

A worker builds its evaluator once and then serves trials over a pipe. It ends when the pipe closes and, on Linux, when
its parent dies, even in the middle of a trial; so a killed search leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from typing import Any

from autoprune.errors import AutopruneError, UsageError
from autoprune.executors.base import Executor, Factory, describe, guarded, lost, worker_environment
from autoprune.trials import TrialResult, TrialSpec

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Worker:
    process: SpawnProcess
    pipe: Any  # Connection, or PipeConnection on Windows
    ready: bool = False
    spec: TrialSpec | None = None
    since: float = 0.0


class ProcessExecutor(Executor):
    """`workers` processes of `threads` numeric threads each.

    `factory` must be picklable; every worker calls it once. When that fails, `wait` raises instead of trying again. A
    worker that dies during a trial or takes longer than `timeout_s` for it is replaced, its trial reported as lost.
    Workers ignore Ctrl-C: the parent decides.
    """

    def __init__(self, factory: Factory, *, workers: int = 2, threads: int = 1, timeout_s: float | None = None) -> None:
        if workers < 1 or threads < 1:
            raise UsageError(f"an executor needs at least one worker and one thread; got {workers} and {threads}")
        self._factory = factory
        self._threads = threads
        self.timeout_s = timeout_s
        self._queue: deque[TrialSpec] = deque()
        self._finished: deque[TrialResult] = deque()
        self._workers: list[_Worker] = []
        self.slots = workers
        for _ in range(workers):
            self._workers.append(self._spawn())

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial; an idle worker takes it at once."""
        self._queue.append(spec)
        self._assign()

    def wait(self) -> TrialResult:
        """Block until a trial has finished. `AutopruneError` when a worker cannot start."""
        while not self._finished:
            busy = [w for w in self._workers if w.spec or not w.ready]
            assert busy, "wait() without a submitted trial"
            self._collect(busy, self._patience(busy))
        # A worker that has ended does not wait for what results are used for.
        self._collect([w for w in self._workers if w.spec or not w.ready], 0.0)
        return self._finished.popleft()

    def _collect(self, busy: Sequence[_Worker], seconds: float | None) -> None:
        """Take what workers have to say within some seconds, and give those that are idle their next trial."""
        ready = multiprocessing.connection.wait([worker.pipe for worker in busy], seconds)
        for worker in busy:
            if worker.pipe in ready:
                self._receive(worker)
            elif self._overdue(worker):
                worker.process.kill()
                self._replace(worker, f"it took longer than the limit of {self.timeout_s:g} s (--trial-timeout)")
        self._assign()

    def close(self) -> None:
        """Kill all workers: they write nothing, so there is nothing that they could leave half done."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            _reap(worker.process)
        self._workers.clear()
        self._queue.clear()

    def _patience(self, busy: Sequence[_Worker]) -> float | None:
        """Seconds until the first of these workers is overdue; `None` for ever."""
        ends = [w.since + self.timeout_s - time.monotonic() for w in busy if w.spec and self.timeout_s]
        return max(0.0, min(ends)) if ends else None

    def _overdue(self, worker: _Worker) -> bool:
        return bool(self.timeout_s and worker.spec and time.monotonic() - worker.since >= self.timeout_s)

    def _assign(self) -> None:
        for worker in list(self._workers):
            if self._queue and worker.ready and worker.spec is None:
                worker.spec, worker.since = self._queue.popleft(), time.monotonic()
                try:
                    worker.pipe.send(worker.spec)
                except OSError:
                    self._replace(worker)

    def _receive(self, worker: _Worker) -> None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if kind == "broken":
            raise AutopruneError(f"a worker could not prepare for trials: {value}")
        if kind == "result":
            self._finished.append(value)
            worker.spec = None
        worker.ready = True

    def _replace(self, worker: _Worker, reason: str | None = None) -> None:
        code, spec = _reap(worker.process), worker.spec
        worker.pipe.close()
        if not worker.ready:
            raise AutopruneError(
                f"a worker died before its first trial ({_cause(code)}). Try `--executor inline` to see why, "
                "or fewer workers if memory is short."
            )
        self._workers[self._workers.index(worker)] = self._spawn()
        if spec is not None:
            reason = reason or f"its worker died: {_cause(code)}"
            _log.warning("trial %d is lost: %s", spec.number, reason)
            self._finished.append(lost(spec, reason, time.monotonic() - worker.since))

    def _spawn(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(self._factory, there, os.getpid()), daemon=True)
        with worker_environment(self._threads):
            process.start()
        # Only the worker may hold its end: otherwise its death would not close the pipe.
        there.close()
        return _Worker(process=process, pipe=here)


def _serve(factory: Factory, pipe: Any, parent: int) -> None:
    """Body of a worker: prepare once, then answer trials until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    _avoid_semaphores()
    with contextlib.suppress(EOFError, OSError):
        try:
            evaluate = factory()
        except Exception as error:
            _log.debug("a worker could not start", exc_info=True)
            pipe.send(("broken", describe(error)))
            return
        pipe.send(("ready", None))
        while True:
            pipe.send(("result", guarded(evaluate, pipe.recv())))


def _avoid_semaphores() -> None:
    """Give tqdm a lock of threads: torch.fx makes progress bars, and a killed process would leak tqdm's semaphores."""
    with contextlib.suppress(ImportError):  # torch does without it
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())


def _die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies; elsewhere the closing pipe ends it after its trial."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _reap(process: SpawnProcess) -> int | None:
    process.join(_GRACE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
