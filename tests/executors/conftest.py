from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest

from autoprune.executors.base import Executor
from autoprune.executors.cluster import authenticate
from autoprune.executors.process import ProcessExecutor


@pytest.fixture
def process_executor() -> Callable[..., Executor]:
    return ProcessExecutor


@pytest.fixture(scope="module")
def ray_executor() -> Iterator[Callable[..., Executor]]:
    """Opens executors on one Ray instance of two CPUs, which takes seconds to start."""
    authenticate(None)
    from autoprune.executors import ray

    ray.join(None, {"cpu": 1.0}, workers=2, threads=1)
    yield functools.partial(ray.RayExecutor, workers=2)
    ray.ray.shutdown()
