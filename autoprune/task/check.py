"""`check_task`: run a task once on a few items, so that a wrong one fails in the first second and says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from autoprune.errors import AutopruneError, TaskError
from autoprune.model.acceptance import accepted
from autoprune.model.copying import copy_of
from autoprune.model.examples import Items
from autoprune.model.nesting import tensors_in
from autoprune.model.outputs import described
from autoprune.model.randomness import seeded
from autoprune.task.base import DATA_SETS, IGNORED, Task
from autoprune.task.batches import length, sample_rows, take
from autoprune.task.faults import described_fault, task_faults

_ITEMS = 4
_MOST_ITEMS = 10**9


def check_task(task: Task) -> None:
    """Fetch a few items of every data set and run the model, the loss and the augmentation once.

    Raises `TaskError` for values that are not finite, shapes that do not fit the model's example inputs, outputs that
    are not one tensor with the batch dimension first (in evaluation or in training mode), and targets that the loss
    cannot take; `StructureError` for a model that cannot be pruned as it is. The model's statistics stay as they are.
    """
    with task_faults(task):
        model = _build(task)
        _outputs(task, model, task.example_inputs, "example_inputs")
        for name in DATA_SETS:
            _check_length(name, getattr(task, name))
            _check_data(task, model, name, getattr(task, name))
        _check_augment(task)
        _check_training(task, copy_of(model).train())


def _build(task: Task) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        model = task.build_model()
    if not isinstance(model, nn.Module):
        raise TaskError(f"build_model must return an nn.Module; it returned {type(model).__name__}")
    floats = (p.dtype for p in accepted(model).parameters() if p.is_floating_point())
    others = sorted({str(dtype) for dtype in floats if dtype != torch.float32})
    if others:
        raise TaskError(
            f"a search trains and exports in float32; the weights of {task.name!r} are {', '.join(others)}. Let "
            "build_model return model.float(); the pruned model can be converted back"
        )
    return model.eval()


def _check_length(name: str, dataset: Dataset[Any]) -> None:
    if length(dataset) > _MOST_ITEMS:
        raise TaskError(
            f"{name} has {length(dataset):,} items, and rows are drawn from at most {_MOST_ITEMS:,}. Give a "
            "torch.utils.data.Subset of it"
        )


def _check_data(task: Task, model: nn.Module, name: str, dataset: Dataset[Any]) -> None:
    if type(dataset) is TensorDataset:  # all of it is in memory: a look at every value costs next to nothing
        for tensor in dataset.tensors:
            _require_finite(tensor, f"{name} holds")
    batch = take(dataset, sample_rows(length(dataset), _ITEMS))
    for tensor in tensors_in(batch):
        _require_finite(tensor, f"{name} holds")
    inputs, targets = task.split(batch)
    _check_inputs(task, name, inputs)
    outputs = _outputs(task, model, inputs, name)
    extra = len(batch) - len(inputs)
    if task.loss is not None and extra != 1 and task.train_step is None:
        raise TaskError(
            f"with a loss an item is the model's {len(inputs)} inputs and one target; one of {name} has "
            f"{extra or 'nothing'} after them. Leave the rest out, or give a train_step"
        )
    if task.loss is not None and targets is not None:
        _check_targets(task, name, outputs, targets)


def _check_inputs(task: Task, name: str, inputs: tuple[Tensor, ...]) -> None:
    if len(inputs) < len(task.example_inputs):
        raise TaskError(
            f"the model takes {len(task.example_inputs)} inputs; an item of {name} has {len(inputs)}. An item is "
            "(inputs..., target), or a dict of the inputs and the target"
        )
    pads = isinstance(getattr(task, name), Items) and getattr(task, name).collate is not None
    for got, example in zip(inputs, task.example_inputs, strict=True):
        if not isinstance(got, Tensor):
            raise TaskError(
                f"all items of {name} must have inputs of the same shapes; give a DataLoader whose collate_fn pads them"
            )
        alike = got.dim() == example.dim() if pads else got.shape[1:] == example.shape[1:]
        if not alike or got.dtype != example.dtype:
            raise TaskError(
                f"items of {name} must look like example_inputs, {tuple(example.shape[1:])} of {example.dtype} without "
                f"the batch dimension; got {tuple(got.shape[1:])} of {got.dtype}"
            )


def _outputs(task: Task, model: nn.Module, inputs: tuple[Tensor, ...], name: str) -> Tensor:
    try:
        with torch.no_grad():
            outputs = model(*inputs)
    except AutopruneError:
        raise
    except Exception as error:
        raise TaskError(f"the model of {task.name!r} failed on {name}: {described_fault(error)}") from error
    with torch.no_grad():
        outputs = task.select(outputs)
    _require_tensor(task, outputs, training=model.training)
    if outputs.ndim == 0 or len(outputs) != len(inputs[0]):
        raise TaskError(
            f"the first dimension of the outputs must be the batch ({len(inputs[0])}); got {tuple(outputs.shape)}"
        )
    _require_finite(outputs, f"on {name} the model returns")
    return outputs


def _check_targets(task: Task, name: str, outputs: Tensor, targets: Tensor) -> None:
    assert task.loss is not None
    by_accuracy = task.metric is None and task.classifies
    if by_accuracy and (outputs.ndim != 2 or outputs.shape[1] < 2):
        raise TaskError(
            f"accuracy needs an output for each class; on {name} the model returns {tuple(outputs.shape)}. Give a "
            "metric, or targets in floating point (the score is then the closeness to the dense outputs)"
        )
    data, known = getattr(task, name), targets
    if by_accuracy and type(data) is TensorDataset and len(data.tensors) > len(task.example_inputs):
        known = data.tensors[len(task.example_inputs)]  # all of them: a look at every value costs next to nothing
    classes = known[known != IGNORED] if by_accuracy else known
    if not classes.numel():
        return  # all of these few are left out, of which no loss has a mean
    if by_accuracy and not 0 <= int(classes.min()) <= int(classes.max()) < outputs.shape[1]:
        raise TaskError(
            f"targets of {name} must be class indices below {outputs.shape[1]} (the model's outputs); "
            f"got {int(classes.min())} to {int(classes.max())}"
        )
    try:
        loss = task.loss(outputs, targets)
    except Exception as error:
        raise TaskError(f"the loss failed on {name}: {described_fault(error)}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TaskError(f"loss(outputs, targets) must return a scalar tensor; got {got} on {name}")
    _require_finite(loss, f"on {name} the loss returns")


def _check_augment(task: Task) -> None:
    if task.augment is None:
        return
    inputs, _ = task.split(take(task.train_set, sample_rows(length(task.train_set), _ITEMS)))
    try:
        changed = task.augment(inputs[0], torch.Generator().manual_seed(0))
    except Exception as error:
        raise TaskError(f"augment(inputs, generator) failed: {described_fault(error)}") from error
    if not isinstance(changed, Tensor) or changed.shape != inputs[0].shape or changed.dtype != inputs[0].dtype:
        raise TaskError(f"augment must keep the shape {tuple(inputs[0].shape)} and type {inputs[0].dtype} of its batch")
    _require_finite(changed, "augment returns")


def _check_training(task: Task, model: nn.Module) -> None:
    """Recovery trains: in training mode the model may return something else, such as auxiliary heads."""
    batch = take(task.train_set, sample_rows(length(task.train_set), _ITEMS))
    with seeded(0):
        if task.train_step is None:
            _outputs(task, model, task.split(batch)[0], "train_set in training mode")
        else:
            _check_train_step(task, task.train_step, model, batch)


def _check_train_step(
    task: Task, train_step: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: tuple[Tensor, ...]
) -> None:
    calls: list[object] = []
    model.register_forward_hook(lambda _, inputs, outputs: calls.append(outputs))
    try:
        loss = train_step(model, batch)
    except Exception as error:
        raise TaskError(f"train_step(model, batch) failed: {described_fault(error)}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise TaskError(
            f"train_step(model, batch) must return a scalar tensor that depends on the model; got {type(loss).__name__}"
        )
    if not calls:
        raise TaskError("train_step(model, batch) must call `model`, the one it is given")
    _require_finite(loss, "train_step returns")
    if task.tuning_recipe.distill_weight > 0:  # every call is compared with the dense model's
        for outputs in calls:
            _require_tensor(task, task.select(outputs), training=True)


def _require_tensor(task: Task, outputs: object, *, training: bool) -> None:
    if isinstance(outputs, Tensor):
        return
    example = "`lambda out: out if isinstance(out, torch.Tensor) else out[0]`"
    mode, remedy = (
        (", in training mode, too", f"a function such as {example}") if training else ("", "a function or a name")
    )
    raise TaskError(
        f"a model must return one tensor{mode}; that of {task.name!r} returns {type(outputs).__name__}. Say which part "
        f"counts by `outputs=`, {remedy}; {described(outputs)}"
    )


def _require_finite(tensor: Tensor, who: str) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = "NaN" if bool(torch.isnan(tensor).any()) else "an infinite value"
        raise TaskError(f"data and outputs must be finite; {who} {bad}. Clean the data or the model first")
