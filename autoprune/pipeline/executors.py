"""Where the trials of a run take place.

Latency is measured by the controller alone, between rungs, when every trial that was submitted has come back: nothing
of this search runs while it measures. On a cluster, a head without CPUs for trials keeps those of others away as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autoprune.evaluation import EvaluatorFactory
from autoprune.executors.base import Executor
from autoprune.executors.cluster import authenticate
from autoprune.executors.inline import InlineExecutor
from autoprune.executors.process import ProcessExecutor
from autoprune.pipeline.prepare import Setup


@contextmanager
def executor_of(setup: Setup) -> Iterator[Executor]:
    """Where the trials of a run take place, by its configuration."""
    config = setup.config
    if config.executor == "inline":
        threads = torch.get_num_threads()
        torch.set_num_threads(config.worker_threads)  # as a worker would, so that results are the same
        try:
            with InlineExecutor(setup.evaluator) as executor:
                yield executor
        finally:
            torch.set_num_threads(threads)
        return
    factory = EvaluatorFactory(
        task=config.task,
        model=config.model,
        data_dir=config.data_dir,
        run_dir=str(setup.folder.path.resolve()),
        threads=config.worker_threads,
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
