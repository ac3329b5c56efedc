"""Batch-norm recalibration: after pruning, the stored statistics belong to activations that no longer exist."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoprune.model.compute import computing_on
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows
from autoprune.training.sample_passes import SamplePasses

# Large against any statistic, and exact in float32, so that what remains of it shows the momentum to seven digits.
_MARKER = 2.0**20


@dataclass(frozen=True, kw_only=True)
class _Statistic:
    """A running mean or variance and the share of it that one forward pass in training mode replaces."""

    buffer: Tensor
    momentum: Tensor


def take_statistics(x: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Write the mean and the unbiased variance of every channel of `x` `[N, C, ...]` into two buffers `[C]`.

    `torch.var_mean` gives the same in ten times the time: its single pass over several dimensions is not vectorized.
    """
    dims, shape = [0, *range(2, x.dim())], (-1, *[1] * (x.dim() - 2))
    mean.copy_(x.mean(dims))
    squares = (x - mean.reshape(shape)).square_().sum(dims)
    variance.copy_(squares / (x.numel() // x.shape[1] - 1))


def recalibrate(
    model: nn.Module,
    task: Task,
    *,
    examples: int = 512,
    batch_size: int = 128,
    seed: int = 0,
    dataset: Dataset[Any] | None = None,
    passes: SamplePasses | None = None,
    relative_cost: float = 1.0,
) -> None:
    """Replace the running statistics of `model`, in place, by their averages over some of the training data.

    Works on every module whose forward pass in training mode updates buffers named `...running_mean` and
    `...running_var` by a fixed momentum, traced graphs included. Parameters stay, and the model is left in evaluation
    mode. A model without such buffers is left alone and costs nothing.

    Args:
        model: a pruned model.
        task: gives the training data.
        examples: training examples to average over, rounded down to whole batches.
        batch_size: examples that pass through the model at once; all batches are of this size.
        seed: decides which examples are drawn, and dropout.
        dataset: replaces the task's training data.
        passes: counts the cost of the forward passes.
        relative_cost: MACs of the model as a share of the dense model's.
    """
    model.eval()
    if not _running_buffers(model):
        return
    dataset = task.train_set if dataset is None else dataset
    rows = sample_rows(length(dataset), examples, seed=seed)
    batch_size = min(batch_size, len(rows))
    # Batches of equal size weigh the same; a smaller last one would have noisier statistics.
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    rows = rows[: len(rows) // batch_size * batch_size]
    probe, _ = task.split(next(batches(dataset, 2, rows=rows[:2])))
    inputs = (task.split(b)[0] for b in batches(dataset, batch_size, rows=rows))
    with computing_on(task.compute_device, model):
        probes = recalibrate_on(model, probe, inputs, seed=seed)
    if passes is not None:
        passes.forward(len(rows) + probes * len(rows[:2]), relative_cost)


def recalibrate_on(
    model: nn.Module, probe: tuple[Tensor, ...], inputs: Iterable[tuple[Tensor, ...]], *, seed: int = 0
) -> int:
    """Recalibrate on batches of inputs, all of the same size; `probe` is a small batch to read the momenta off.

    Returns the number of passes over `probe`, 0 for a model without running statistics.
    """
    model.eval()
    if not _running_buffers(model):
        return 0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model.train()
        statistics, probes = _find_momenta(model, probe, seed=seed)
        averages = _average(model, statistics, inputs)
        for statistic, average in zip(statistics, averages, strict=True):
            statistic.buffer.copy_(average)
        model.eval()
    return probes


def _running_buffers(model: nn.Module) -> list[Tensor]:
    return [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


def _find_momenta(model: nn.Module, probe: tuple[Tensor, ...], *, seed: int) -> tuple[list[_Statistic], int]:
    """Read the momentum of every live statistic off two passes over one batch that start from 0 and from `_MARKER`.

    A pass gives new = (1 - momentum) * old + momentum * batch, so the two results differ by (1 - momentum) * _MARKER,
    as long as frozen layers have what they normalise by. Returns also the number of passes.
    """
    buffers = _running_buffers(model)
    saved = [buffer.clone() for buffer in buffers]
    high, passes = _after_pass(model, buffers, probe, start=_MARKER, seed=seed), 2
    live = [number for number, after in enumerate(high) if not bool((after == _MARKER).all())]
    if len(live) < len(buffers):
        _restore(buffers, saved)
        buffers, saved = [buffers[number] for number in live], [saved[number] for number in live]
        high, passes = _after_pass(model, buffers, probe, start=_MARKER, seed=seed), 3
    low = _after_pass(model, buffers, probe, start=0.0, seed=seed)
    _restore(buffers, saved)
    statistics = []
    for buffer, first, second in zip(buffers, low, high, strict=True):
        momentum = 1 - ((second - first) / _MARKER).median()
        if momentum > 1e-4:  # below that a pass says nothing about the batch
            statistics.append(_Statistic(buffer=buffer, momentum=momentum))
    return statistics, passes


def _after_pass(
    model: nn.Module, buffers: list[Tensor], probe: tuple[Tensor, ...], *, start: float, seed: int
) -> list[Tensor]:
    """Return the values of buffers after a pass, when all started from one number; every pass has the same dropout."""
    torch.manual_seed(seed)
    _reset(model, buffers, start)
    model(*probe)
    return [buffer.clone() for buffer in buffers]


def _restore(buffers: list[Tensor], saved: list[Tensor]) -> None:
    for buffer, before in zip(buffers, saved, strict=True):
        buffer.copy_(before)


def _average(model: nn.Module, statistics: list[_Statistic], inputs: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    buffers = [statistic.buffer for statistic in statistics]
    sums = [torch.zeros_like(buffer) for buffer in buffers]
    count = 0
    for batch in inputs:
        _reset(model, buffers, 0.0)
        model(*batch)
        count += 1
        for total, statistic in zip(sums, statistics, strict=True):
            total += statistic.buffer / statistic.momentum
    return [total / count for total in sums]


def _reset(model: nn.Module, buffers: list[Tensor], start: float) -> None:
    for buffer in buffers:
        buffer.fill_(start)
    # A batch norm with momentum None takes 1 / (batches seen) instead; from 0 that is 1 in every pass.
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
