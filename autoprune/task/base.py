"""`Task` (model, data, loss, metric) and `Recipe` (how a model is trained): all that the user has to describe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoprune.errors import TaskError, UsageError

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "one-cycle"]
Precision = Literal["fp32", "bf16", "auto"]

# Mandatory fields have a default so that a missing one is reported like an ill-typed one: a `TaskError` naming it.
_REQUIRED: Any = None
_CHOICES = {"optimizer": get_args(Optimizer), "schedule": get_args(Schedule), "precision": get_args(Precision)}
_RANGES = {
    "epochs": (0.0, math.inf),
    "batch_size": (2, math.inf),
    "lr": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "momentum": (0.0, 0.9999),
    "clip_norm": (0.0, math.inf),
    "label_smoothing": (0.0, 0.9999),
    "distill_weight": (0.0, 1.0),
    "temperature": (0.01, math.inf),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained, dense or pruned.

    `clip_norm` 0 clips nothing. `distill_weight` is the share of the distillation loss when there is a teacher.
    SGD uses Nesterov momentum; for AdamW `momentum` is the first beta. `precision` `auto` takes bf16 where the CPU has
    matrix units for it. `channels_last` is a wish: models that cannot run that way run contiguous.
    `label_smoothing` applies where the task's loss is `torch.nn.functional.cross_entropy`.
    """

    epochs: float = 4
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    schedule: Schedule = "cosine"
    weight_decay: float = 5e-4
    momentum: float = 0.9
    clip_norm: float = 5.0
    label_smoothing: float = 0.0
    distill_weight: float = 0.5
    temperature: float = 4.0
    precision: Precision = "auto"
    channels_last: bool = True

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"a recipe's {name} is one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
                raise UsageError(f"a recipe's {name} must lie in [{low:g}, {high:g}]; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model to compress, with its data and what counts as good.

    `example_inputs` have the batch dimension first. Data sets are map-style with a length, of `(inputs..., target)`.
    With `loss=None` every tensor of an item is an input: recovery then distils to the outputs of the dense model, and
    the default metric is closeness to them. `metric(model, dataset)` is higher for better models; the default is
    accuracy where targets are class indices. `augment(inputs, generator)` changes a batch of the first input.
    `recipe` trains the dense model from scratch; None says that `build_model` returns trained weights.
    Raises `TaskError` naming the field that is absent or of a wrong type.
    """

    name: str = _REQUIRED
    build_model: Callable[[], nn.Module] = _REQUIRED
    example_inputs: tuple[Tensor, ...] = _REQUIRED
    train_set: Dataset[Any] = _REQUIRED
    val_set: Dataset[Any] = _REQUIRED
    test_set: Dataset[Any] = _REQUIRED
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    metric: Callable[[nn.Module, Dataset[Any]], float] | None = None
    metric_name: str = ""
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    recipe: Recipe | None = None
    finetune_recipe: Recipe = field(default_factory=lambda: Recipe(batch_size=32, lr=0.02))

    def __post_init__(self) -> None:
        for entry in fields(self):
            _require_type(entry.name, getattr(self, entry.name))
        for name in ("train_set", "val_set", "test_set"):
            _require_items(name, getattr(self, name))
        if self.recipe is not None and self.loss is None:
            raise TaskError(
                "a task's recipe trains the dense model, which needs a loss; give `loss`, or leave out `recipe`"
            )
        if not self.metric_name:
            object.__setattr__(self, "metric_name", self._default_metric_name())

    def split(self, item: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Separate an item, or a batch of items, into the model's inputs and the target (None without a loss)."""
        return (item, None) if self.loss is None else (item[:-1], item[-1])

    @cached_property
    def classifies(self) -> bool:
        """Whether targets are class indices: accuracy and divergence of class probabilities make sense."""
        if self.loss is None:
            return False
        target = as_tensors(self.val_set[0])[-1]
        return target.ndim == 0 and not target.is_floating_point() and not target.is_complex()

    def _default_metric_name(self) -> str:
        if self.metric is not None:
            return getattr(self.metric, "__name__", "metric").strip("<>")
        return "accuracy" if self.classifies else "closeness"


def as_tensors(item: object) -> tuple[Tensor, ...]:
    """One data item as a tuple of tensors; numbers and numpy arrays become tensors. Raises `TaskError` for others."""
    parts = item if isinstance(item, tuple | list) else (item,)
    try:
        return tuple(torch.as_tensor(part) for part in parts)
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TaskError(f"a data item is a tuple (inputs..., target) of tensors; got ({kinds})") from error


def is_dataset(value: object) -> bool:
    """Whether a value can serve as a map-style data set: it has a length and can be indexed."""
    return isinstance(value, Sized) and hasattr(value, "__getitem__")


def _callable_or_none(value: object) -> bool:
    return value is None or callable(value)


def _are_tensors(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(x, Tensor) and x.ndim > 0 for x in value)


_OPTIONAL_CALLABLE = (_callable_or_none, "a function or None")
_DATA = (is_dataset, "a map-style data set with a length, of items (inputs..., target)")
_FIELD_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda value: isinstance(value, str) and bool(value), "a text that is not empty"),
    "build_model": (callable, "a function without arguments that returns an nn.Module"),
    "example_inputs": (_are_tensors, "a tuple of tensors, batch dimension first"),
    "train_set": _DATA,
    "val_set": _DATA,
    "test_set": _DATA,
    "loss": _OPTIONAL_CALLABLE,
    "metric": _OPTIONAL_CALLABLE,
    "metric_name": (lambda value: isinstance(value, str), "a text"),
    "augment": _OPTIONAL_CALLABLE,
    "recipe": (lambda value: value is None or isinstance(value, Recipe), "a Recipe or None"),
    "finetune_recipe": (lambda value: isinstance(value, Recipe), "a Recipe"),
}


def _require_type(name: str, value: object) -> None:
    accepts, wanted = _FIELD_RULES[name]
    if not accepts(value):
        got = "nothing" if value is None else f"{type(value).__name__} {_short(value)}"
        raise TaskError(f"a task's {name} must be {wanted}; got {got}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _require_items(name: str, dataset: Dataset[Any]) -> None:
    size = len(dataset)  # pyright: ignore[reportArgumentType]
    if size < 1:
        raise TaskError(f"a task's {name} must hold at least one item; it is empty")
