"""Where the trials of a run take place.

Latency is measured by the controller alone, between rungs, when every trial that was submitted has come back: nothing
of this search runs while it measures. On a cluster, a head without CPUs for trials keeps those of others away as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from autoprune.config import RunConfig
from autoprune.evaluation import Evaluator, EvaluatorFactory
from autoprune.executors.base import Executor
from autoprune.executors.cluster import authenticate
from autoprune.executors.inline import InlineExecutor
from autoprune.executors.process import ProcessExecutor
from autoprune.runfolder import RunFolder


@contextmanager
def executor_of(config: RunConfig, folder: RunFolder, evaluator: Callable[[], Evaluator]) -> Iterator[Executor]:
    """Open the executor that a configuration names.

    Args:
        config: `executor` and its options.
        folder: from which workers load dense weights, channel order and latency table.
        evaluator: makes the evaluator for trials in this process.
    """
    if config.executor == "inline":
        with trial_threads(config.worker_threads), InlineExecutor(evaluator) as executor:
            yield executor
        return
    factory = EvaluatorFactory(
        task=config.task,
        model=config.model,
        data_dir=config.data_dir,
        run_dir=str(folder.path.resolve()),
        threads=config.worker_threads,
        schedule=config.schedule,
    )
    if config.executor == "process":
        with ProcessExecutor(
            factory, workers=config.slots, threads=config.worker_threads, timeout_s=config.trial_timeout
        ) as executor:
            yield executor
        return
    authenticate(config.ray_address)
    from autoprune.executors.ray import RayExecutor  # which takes seconds to import

    with RayExecutor(
        factory.packed(),
        address=config.ray_address,
        resources=config.resources,
        workers=config.workers,
        threads=config.worker_threads,
        timeout_s=config.trial_timeout,
    ) as executor:
        yield executor


@contextmanager
def trial_threads(count: int) -> Iterator[None]:
    """Use as many threads as a worker would, so that results and times are the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
