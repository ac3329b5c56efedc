"""One interface over every kind of target: time whole models, and read the runtime's own profile of their kernels.

Callers do not see whether ONNX Runtime or PyTorch runs a model, nor whether it runs on this host or on another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from autoprune.device import measure
from autoprune.device.measure import Run
from autoprune.device.ssh import measure_remotely
from autoprune.device.target import Target
from autoprune.device.timing import Feeds, Kernels, Model, Protocol, Timings, named_feeds, open_session, time_runs
from autoprune.errors import LatencyError
from autoprune.model.copying import copy_of


def time_models(
    models: Iterable[Model],
    target: Target,
    feeds: Feeds,
    *,
    reference: Model,
    protocol: Protocol | None = None,
    seed: int = 0,
) -> Timings:
    """Time every model end to end, interleaved with a reference model, on the target's host.

    Args:
        models: ONNX models (bytes or paths) or modules. May be a generator: only one block of models is in memory at a
            time; for a remote host, all are.
        target: The runtime and the device that run the models.
        feeds: Inputs of every model, by position.
        reference: The model that every other one is compared with, usually the dense one.
        protocol: How long and how often each model is timed.
        seed: Seed of the random order of runs.

    Returns:
        The timings in the order of `models`.

    Raises:
        LatencyError: A model cannot be loaded, or a remote host cannot be reached.
    """
    if target.address:
        contents = [_content(model) for model in models]
        timings = measure_remotely(contents, target, feeds, reference=_content(reference), protocol=protocol).timings
        if timings is None:
            raise LatencyError("timing needs at least one model; got none. Give `models` at least one.")
        return timings
    with measure.pinned(target.threads, one_each=target.runtime == "onnxruntime"), _torch_threads(target):
        reference_run = _opener(reference, target, feeds)()
        openers = (_opener(model, target, feeds) for model in models)
        clock = measure.clock_of(target.provider, target.threads)
        return time_runs(openers, reference_run, protocol=protocol, seed=seed, clock=clock)


def kernel_times(models: Iterable[Model], target: Target, feeds: Feeds) -> Iterator[Kernels]:
    """Yield the kernel times of every model from the runtime's own profiler.

    They are whole microseconds and include the profiler's overhead. Nothing is yielded for PyTorch, whose profiler
    slows small models down several times.
    """
    if target.runtime != "onnxruntime":
        return
    if target.address:
        contents = [_content(model) for model in models]
        yield from measure_remotely(contents, target, feeds, profile=True).kernels
        return
    with measure.pinned(target.threads, one_each=True):
        for model in models:
            names, ms = measure.kernel_events(model, feeds, target.provider, target.threads)
            yield Kernels(names=tuple(names), ms=ms)


def _content(model: Model) -> bytes:
    return model if isinstance(model, bytes) else Path(model).read_bytes()


@contextmanager
def _torch_threads(target: Target) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if target.runtime == "torch":
            torch.set_num_threads(target.threads)
        yield
    finally:
        torch.set_num_threads(before)


def _opener(model: Model, target: Target, feeds: Feeds) -> Callable[[], Run]:
    if isinstance(model, nn.Module):
        return lambda: _torch_run(model, target, feeds)
    source: bytes | str = str(model) if isinstance(model, Path) else model

    def opened() -> Run:
        session = open_session(source, target)
        named_feeds(session, feeds)  # refuses another number of inputs
        return measure.runner(session, feeds)

    return opened


def _torch_run(model: nn.Module, target: Target, feeds: Feeds) -> Run:
    """A callable for eager or compiled PyTorch; on CUDA it ends when the device is done."""
    inputs = [torch.from_numpy(feed).to(target.provider) for feed in feeds]
    module = copy_of(model).eval().to(target.provider)
    called: Callable[..., object] = torch.compile(module) if target.name.endswith("-compiled") else module
    cuda = target.provider == "cuda"

    def run() -> object:
        with torch.inference_mode():
            outputs = called(*inputs)
        if cuda:
            torch.cuda.synchronize()
        return outputs

    try:
        run()
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise LatencyError(f"PyTorch cannot run the model on {target.name}: {reason[0]}") from error
    return run
