"""Scores of a model: the task's metric, and the divergence of its outputs from the dense model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from autoprune.errors import AutopruneError, TaskError, TrialError, UsageError
from autoprune.model.acceptance import users_line
from autoprune.model.compute import CPU, computing_on
from autoprune.task.base import IGNORED, Task
from autoprune.task.batches import batches, length, sample_rows
from autoprune.training.distillation import are_logits, divergence
from autoprune.training.sample_passes import SamplePasses

EVALUATION_BATCH = 125


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's score on `examples` items: the task's metric, higher is better.

    `divergence` is the distance of the outputs from the dense model's, `None` when dense outputs were not given.
    """

    score: float
    divergence: float | None
    examples: int


def predict_outputs(
    model: nn.Module, task: Task, dataset: Dataset[Any], *, limit: int = 0, batch_size: int = EVALUATION_BATCH
) -> Tensor:
    """Return outputs `[N, ...]` of the model in evaluation mode, on a data set or a fixed sample of its items.

    Args:
        model: is left in evaluation mode.
        task: tells inputs and targets of an item apart.
        dataset: one of the task's data sets.
        limit: number of items in the sample, which is the same for every model; 0 takes all.
        batch_size: items that pass through the model at once.

    Raises:
        TrialError: an output is not finite.
        TaskError: outputs of different batches have different sizes.
    """
    model.eval()
    rows = sample_rows(length(dataset), limit)
    with torch.no_grad(), computing_on(task.compute_device, model, results=CPU):
        parts = [task.select(model(*task.split(batch)[0])) for batch in batches(dataset, batch_size, rows=rows)]
    if len({part.shape[1:] for part in parts}) > 1:
        raise TaskError(
            f"outputs must have one size for every batch; those of {task.name!r} have several, as "
            "of batches that are padded to different lengths. Select a part of one size by `outputs=`, or pad all alike"
        )
    outputs = torch.cat(parts)
    _require_finite(outputs)
    return outputs


def evaluate(
    model: nn.Module,
    task: Task,
    dataset: Dataset[Any],
    *,
    dense_outputs: Tensor | None = None,
    limit: int = 0,
    outputs: Tensor | None = None,
    passes: SamplePasses | None = None,
    relative_cost: float = 1.0,
) -> Evaluation:
    """Score a model on a data set or a fixed sample of its items, and leave the model in evaluation mode.

    Args:
        model: the model to score.
        task: gives the metric.
        dataset: one of the task's data sets.
        dense_outputs: `predict_outputs` of the dense model on the *whole* data set. The divergence needs them, and so
            does a task that has neither a metric of its own nor class targets.
        limit: number of items in the sample, which is the same for every model; 0 takes all.
        outputs: outputs of the model on these items, where they are known already.
        passes: counts the cost of running the model.
        relative_cost: MACs of the model as a share of the dense model's.

    Raises:
        TrialError: the score or an output is not finite.
        TaskError: the task's metric failed, or did not return a number.
        UsageError: `dense_outputs` are missing, or do not cover the data set.
    """
    rows = sample_rows(length(dataset), limit)
    reference = _reference(dense_outputs, dataset, rows)
    needs_outputs = task.metric is None or reference is not None
    if outputs is not None:
        _require_finite(outputs)
    elif needs_outputs:
        outputs = predict_outputs(model, task, dataset, limit=limit)
    distance = None
    if outputs is not None and reference is not None:
        distance = divergence(outputs, reference, classifies=task.classifies)
    score = _score(model, task, dataset, rows, outputs=outputs, reference=reference)
    if not math.isfinite(score):
        raise TrialError(f"the metric {task.metric_name!r} must be finite; it is {score}")
    if passes is not None:
        passes.forward(len(rows) * (int(needs_outputs) + int(task.metric is not None)), relative_cost)
    return Evaluation(score=score, divergence=distance, examples=len(rows))


def _require_finite(outputs: Tensor) -> None:
    if not bool(torch.isfinite(outputs).all()):
        raise TrialError(f"a model's outputs must be finite; {int((~torch.isfinite(outputs)).sum())} values are not")


def _reference(dense_outputs: Tensor | None, dataset: Dataset[Any], rows: Tensor) -> Tensor | None:
    if dense_outputs is None:
        return None
    if len(dense_outputs) != length(dataset):
        raise UsageError(
            f"dense outputs must cover the whole data set of {length(dataset)} items; there are {len(dense_outputs)}"
        )
    return dense_outputs[rows]


def _score(
    model: nn.Module,
    task: Task,
    dataset: Dataset[Any],
    rows: Tensor,
    *,
    outputs: Tensor | None,
    reference: Tensor | None,
) -> float:
    if task.metric is not None:
        some = dataset if len(rows) == length(dataset) else Subset(dataset, rows.tolist())
        try:
            with torch.no_grad(), computing_on(task.compute_device, model, results=CPU):
                score = task.metric(model.eval(), some)
        except AutopruneError:
            raise
        except Exception as error:
            raise TaskError(
                f"the metric {task.metric_name!r} failed: {type(error).__name__}: {error}{users_line(error)}"
            ) from error
        try:
            return float(score)
        except (TypeError, ValueError, RuntimeError):
            raise TaskError(
                f"the metric {task.metric_name!r} must return one number; it returned {type(score).__name__} "
                f"{str(score)[:60]!r}"
            ) from None
    assert outputs is not None
    if are_logits(outputs, classifies=task.classifies):
        return _accuracy(outputs, task, dataset, rows)
    if reference is None:
        raise UsageError(f"task {task.name!r} is scored by its closeness to the dense model; pass `dense_outputs`")
    return 1 - divergence(outputs, reference, classifies=False)


def _accuracy(outputs: Tensor, task: Task, dataset: Dataset[Any], rows: Tensor) -> float:
    """Share of the rows whose largest logit is the target's; ignored targets do not count."""
    by_batch = [task.split(batch)[1] for batch in batches(dataset, EVALUATION_BATCH, rows=rows)]
    targets = torch.cat([targets for targets in by_batch if targets is not None])
    return (outputs.argmax(dim=1) == targets)[targets != IGNORED].double().mean().item()
