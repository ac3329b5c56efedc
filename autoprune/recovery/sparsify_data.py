"""Data of `sparsify`: a task out of what the user gave, and examples for scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import UsageError
from autoprune.model.examples import is_data, is_dataset
from autoprune.pruning.calibration import Calibration
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows

_EXAMPLES, _BATCH = 512, 64


def task_of(
    model: nn.Module, data: Any, loss: Callable[[Tensor, Tensor], Tensor] | None, validation: Any
) -> Task | None:
    """Return the task that was given, or one of a model, training data and a loss; `None` without data.

    Raises:
        UsageError: the data are no data set and no loader of tuples.
    """
    if data is None or isinstance(data, Task):
        return data
    if not is_data(data):
        raise UsageError(f"data is a Task, a data set or a loader; got {type(data).__name__}")
    if not length(data):
        raise UsageError("a sparse training takes at least one example; the data are empty")
    first = _first(data)
    if not isinstance(first, tuple | list) or not all(isinstance(x, Tensor) for x in first[:1]):
        raise UsageError(f"data gives (inputs..., target); got {type(first).__name__}. For dicts, describe a Task")
    taken = inspect.signature(model.forward).parameters.values()
    positional = [p for p in taken if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in taken)
    count = len(first) - (loss is not None)
    count = count if any_number else min(count, len(positional))
    held_out = data if validation is None else validation
    return Task(
        name="sparsify",
        build_model=lambda: model,
        example_inputs=tuple(x[:1] for x in first[:count]),
        train_set=data,
        val_set=held_out,
        test_set=held_out,
        loss=loss,
    )


def _first(data: Any) -> Any:
    """Return the first batch of data; an item of a data set as a batch of one."""
    if not is_dataset(data):
        return next(iter(data))
    item = data[0]
    if not isinstance(item, tuple | list):
        return item
    return tuple(x[None] if isinstance(x, Tensor) else torch.as_tensor(x)[None] for x in item)


def calibration_of(task: Task | None, scores: str, seed: int) -> Calibration:
    """Return training examples for scores that look at data, and a loss; without one, squared outputs stand in."""
    if task is None or not scores:
        return Calibration(seed=seed)
    rows = sample_rows(length(task.train_set), _EXAMPLES, seed=seed)
    split = [task.split(batch) for batch in batches(task.train_set, _BATCH, rows=rows)]

    def loss(outputs: Any, target: Tensor | None) -> Tensor:
        selected = task.select(outputs)
        return selected.square().mean() if task.loss is None or target is None else task.loss(selected, target)

    return Calibration(batches=split, loss=loss, seed=seed)
