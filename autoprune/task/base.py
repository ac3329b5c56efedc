"""`Task` (model, data, loss, metric) and `Recipe` (how a model is trained): everything that a user describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoprune.errors import TaskError, UsageError
from autoprune.model.acceptance import ExampleInputs, as_inputs
from autoprune.model.adapters import ModelBuilder, OwnMetric, OwnStep, keywords_of
from autoprune.model.examples import Items, as_parts, is_data, items_of
from autoprune.model.outputs import Selector, select
from autoprune.task.metric_direction import Negated

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
    "accumulate": (1, math.inf),
    "ema": (0.0, 0.99999),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained, dense or pruned.

    Raises:
        UsageError: a value is out of its range; the message names the field, the range and the value.

    Example:
        >>> import autoprune
        >>> recipe = autoprune.Recipe(optimizer="adamw", lr=1e-3, batch_size=32)
        >>> recipe.schedule, recipe.weight_decay
        ('cosine', 0.0005)
    """

    epochs: float | None = None
    """Passes over the training data: of the dense model (default: 4), or of the full fine-tune of a pruned one
    (default: what the effort of the search gives). The effort alone says how long the fine-tunings before that are."""
    batch_size: int = 128
    """Examples of a training step, at least 2."""
    optimizer: Optimizer = "sgd"
    """`sgd` with Nesterov momentum, or `adamw`."""
    lr: float = 0.05
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Learning rate over the training: `cosine` rises for 5 %, `one-cycle` for 25 %; both then fall to 0."""
    weight_decay: float = 5e-4
    """Decay of matrices and filters; biases and norms do not decay."""
    momentum: float = 0.9
    """Momentum of SGD, the first beta of AdamW."""
    clip_norm: float = 5.0
    """Largest norm of the gradient of a step; 0 clips nothing."""
    label_smoothing: float = 0.0
    """Used where the task's loss is `torch.nn.functional.cross_entropy`."""
    distill_weight: float = 0.9
    """Share of the distillation loss, when there is a teacher; the task's loss has the rest."""
    temperature: float = 4.0
    """Temperature of the distillation loss for class logits."""
    accumulate: int = 1
    """Batches whose gradients make one step of the optimizer."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is the result of the training; 0 keeps no average."""
    precision: Precision = "auto"
    """Number format of training: `fp32`, `bf16`, or `auto` for bf16 where the CPU has matrix units for it."""
    channels_last: bool = True
    """Store filters channels last, which is faster on CPUs; models that cannot run that way run contiguous."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"a recipe's {name} is one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if name == "epochs" and value is None:
                continue
            if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
                raise UsageError(f"a recipe's {name} must lie in [{low:g}, {high:g}]; got {value!r}")


_DEFAULT_TUNING = Recipe(batch_size=32, lr=0.02)


DENSE_EPOCHS = 4.0
"""Epochs of the dense model where its recipe does not say."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model to compress, with its data, loss and metric.

    Only `build_model`, `example_inputs` and the data are mandatory.

    Args:
        build_model: returns the model, on the CPU; trained, unless there is a `recipe`.
        example_inputs: tensors with the batch dimension first, in the order of `forward`; or a dict of its keywords.
        train_set, val_set, test_set: map-style data sets (a length, items by number) of `(inputs..., target)`, or of
            dicts that hold the keywords of `example_inputs` and the target. All items have the same shapes. Or loaders:
            of a `DataLoader` over a map-style data set its data set and `collate_fn` are used (order, batch size and
            workers are not); any other iterable of batches must be finite and fit into memory, where it is kept.
            Inputs are tensors; targets may be anything: those that cannot be stacked, such as boxes, come as a list
            with an entry for each example, unless a `collate_fn` makes something else of them. A `collate_fn` may pad
            every batch to a length of its own, where the model takes any.
            Random numbers that data sets draw from torch, `random` or numpy are seeded in training.
        loss: `loss(outputs, target)`, a scalar tensor. With None there are no labels: recovery distils to the outputs
            of the dense model. What follows the inputs in an item is then left to `metric` and `train_step`.
        name: appears in reports and run folders; the name of the function `build_model` by default.
        target: key of the target in dict items; by default the only key besides the inputs.
        train_step: `train_step(model, batch)`, a scalar tensor, for losses that `loss` cannot express; batches are
            tuples or dicts as the data give them. Distillation compares the outputs of every call of `model` in the
            step with the dense model's.
        outputs: which part of the model's outputs `loss` gets, is distilled and is scored by default, where the model
            does not return one tensor with the batch dimension first: a function of the outputs, or the name of an
            attribute or a key. `train_step`, `metric`, pruned models and exported files have all outputs; hidden states
            that the chosen part is computed from may be narrower in them.
        metric: `metric(model, data)`, a number that is higher for better models; `data` is the data set (or loader) as
            given, or some of its items. The default is accuracy where targets are class indices, else closeness to the
            dense outputs.
        metric_name: appears in reports; the name of the function `metric` by default.
        lower_is_better: whether `metric` falls for better models, as an error does. Scores are then its negative
            everywhere, and are called `-` and the name, so that higher is better in every file, table and option.
        augment: `augment(inputs, generator)` changes a batch of the first input; when a teacher helps, not in the last
            epoch.
        recipe: trains the dense model from scratch; with None `build_model` returns trained weights.
        finetune_recipe: trains pruned models. With None a search finds optimizer and rate by a short test on a repaired
            model, once per run.

        finetune: `finetune(model, samples, seed)` trains pruned models in the place of the built-in loop: a trainer of
            your own. It sees `samples` training examples (repeated ones count again), and trains the model that it is
            given or returns one with the same weights.

    A task holds its plain form, which all later stages read: data sets of tuples, and a model that takes tensors in
    order (or by keyword).

    Raises:
        TaskError: a field is absent or of a wrong type; the message names the field.

    Example:
        >>> import autoprune, torch
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> def data(examples):
        ...     return TensorDataset(torch.randn(examples, 8), torch.randint(0, 4, (examples,)))
        >>> task = autoprune.Task(
        ...     name="mine",
        ...     build_model=lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
        ...     example_inputs=(torch.zeros(1, 8),),
        ...     train_set=data(64),
        ...     val_set=data(16),
        ...     test_set=data(16),
        ...     loss=nn.functional.cross_entropy,
        ... )
        >>> task.metric_name
        'accuracy'
    """

    build_model: Callable[[], nn.Module] = _REQUIRED
    example_inputs: tuple[Tensor, ...] = _REQUIRED
    train_set: Dataset[Any] = _REQUIRED
    val_set: Dataset[Any] = _REQUIRED
    test_set: Dataset[Any] = _REQUIRED
    name: str = ""
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    target: str = ""
    train_step: Callable[[nn.Module, Any], Tensor] | None = None
    outputs: Selector = None
    metric: Callable[[nn.Module, Any], float] | None = None
    metric_name: str = ""
    lower_is_better: bool = False
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    recipe: Recipe | None = None
    finetune_recipe: Recipe | None = None
    finetune: Callable[[nn.Module, int, int], nn.Module | None] | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            _require_type(entry.name, getattr(self, entry.name))
        if self.recipe is not None and not self.trains:
            raise TaskError(
                "a task's recipe trains the dense model, which needs a loss; give `loss` or `train_step`, or leave out "
                "`recipe`"
            )
        self._become_plain()
        if not self.name:
            self._set(name=_name_of(self.build_model, "task"))
        if not self.metric_name:
            self._set(metric_name=self._default_metric_name())

    @property
    def trains(self) -> bool:
        """Whether the task can train a model without a teacher."""
        return self.loss is not None or self.train_step is not None

    @property
    def tuning_recipe(self) -> Recipe:
        """The recipe that trains pruned models: `finetune_recipe`, or one that suits most convolutional nets."""
        return self.finetune_recipe or _DEFAULT_TUNING

    @property
    def dense_epochs(self) -> float:
        """Epochs of the dense model's training; 0 where `build_model` returns trained weights."""
        if self.recipe is None:
            return 0.0
        return DENSE_EPOCHS if self.recipe.epochs is None else self.recipe.epochs

    @property
    def full_epochs(self) -> float | None:
        """Epochs of the full fine-tune that the task asks for (`None`: as the effort says)."""
        return None if self.finetune_recipe is None else self.finetune_recipe.epochs

    def split(self, item: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Separate an item, or a batch of items, into the model's inputs and the target (None without a loss)."""
        count = len(self.example_inputs)
        return item[:count], item[count] if self.loss is not None and len(item) > count else None

    def select(self, outputs: Any) -> Any:
        """Return the part of the model's outputs that counts, a tensor with the batch dimension first."""
        return select(outputs, self.outputs)

    @cached_property
    def classifies(self) -> bool:
        """Whether targets are class indices: accuracy and divergence of class probabilities make sense."""
        _, target = self.split(as_parts(self.val_set[0]))
        return (
            isinstance(target, Tensor) and target.ndim == 0 and not (target.is_floating_point() or target.is_complex())
        )

    def _become_plain(self) -> None:
        """Replace what the user gave by what later stages read; a task that is plain already stays as it is."""
        keywords = keywords_of(self.example_inputs)
        sets = {
            name: items_of(
                name,
                getattr(self, name),
                keywords,
                self.target,
                all_keys=self.train_step is not None,
                labelled=self.loss is not None,
            )
            for name in DATA_SETS
        }
        train_keys = sets["train_set"].keys if isinstance(sets["train_set"], Items) else ()
        if self.train_step is not None and train_keys and not isinstance(self.train_step, OwnStep):
            self._set(train_step=OwnStep(self.train_step, train_keys))
        if self.metric is not None and any(isinstance(data, Items) for data in sets.values()):
            name = self.metric_name or _name_of(self.metric, "metric")
            self._set(metric_name=name, metric=OwnMetric(self.metric))
        if self.lower_is_better and not isinstance(self.metric, Negated):
            if self.metric is None:
                raise TaskError("lower_is_better=True is about `metric`, which is absent; give a metric")
            name = self.metric_name or _name_of(self.metric, "metric")
            self._set(metric_name=f"-{name}", metric=Negated(self.metric))
        if not isinstance(self.build_model, ModelBuilder):
            name = self.name or _name_of(self.build_model, "task")
            self._set(name=name, build_model=ModelBuilder(self.build_model, keywords))
        self._set(example_inputs=as_inputs(self.example_inputs), target="", **sets)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _default_metric_name(self) -> str:
        if self.metric is not None:
            return _name_of(self.metric, "metric")
        return "accuracy" if self.classifies else "closeness"


IGNORED = -100
"""A class target that losses of PyTorch leave out by default, and accuracy does, too."""

DATA_SETS = ("train_set", "val_set", "test_set")


def _name_of(function: Any, default: str) -> str:
    return getattr(function, "__name__", default).strip("<>")


def _callable_or_none(value: object) -> bool:
    return value is None or callable(value)


def _are_inputs(value: ExampleInputs) -> bool:
    values = list(value.values()) if isinstance(value, Mapping) else [value] if isinstance(value, Tensor) else value
    if not isinstance(values, tuple | list):
        return False
    return bool(values) and all(isinstance(x, Tensor) and x.ndim > 0 for x in values)


_OPTIONAL_CALLABLE = (_callable_or_none, "a function or None")
_TEXT = (lambda value: isinstance(value, str), "a text")
_DATA = (is_data, "a map-style data set with a length, of items (inputs..., target) or dicts, or a loader of batches")
_FIELD_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "build_model": (
        lambda value: callable(value) and not isinstance(value, nn.Module),
        "a function without arguments that returns an nn.Module (`lambda: model` for one that there is)",
    ),
    "example_inputs": (_are_inputs, "a tuple of tensors, batch dimension first, or a dict of them"),
    "train_set": _DATA,
    "val_set": _DATA,
    "test_set": _DATA,
    "name": _TEXT,
    "loss": _OPTIONAL_CALLABLE,
    "target": _TEXT,
    "train_step": _OPTIONAL_CALLABLE,
    "outputs": (lambda value: _callable_or_none(value) or isinstance(value, str), "a function, a name or None"),
    "metric": _OPTIONAL_CALLABLE,
    "metric_name": _TEXT,
    "lower_is_better": (lambda value: isinstance(value, bool), "True or False"),
    "augment": _OPTIONAL_CALLABLE,
    "finetune": _OPTIONAL_CALLABLE,
    "recipe": (lambda value: value is None or isinstance(value, Recipe), "a Recipe or None"),
    "finetune_recipe": (lambda value: value is None or isinstance(value, Recipe), "a Recipe or None"),
}


def _require_type(name: str, value: object) -> None:
    accepts, wanted = _FIELD_RULES[name]
    if not accepts(value):
        got = "nothing" if value is None else f"{type(value).__name__} {_short(value)}"
        raise TaskError(f"a task's {name} must be {wanted}; got {got}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
