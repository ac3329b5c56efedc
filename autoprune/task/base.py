"""`Task`: a model to compress, with its data, loss and metric; everything that a user describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoprune.errors import TaskError
from autoprune.model.acceptance import ExampleInputs, as_inputs
from autoprune.model.adapters import ModelBuilder, OwnMetric, OwnStep, keywords_of
from autoprune.model.compute import compute_device
from autoprune.model.examples import Items, as_parts, is_data, items_of
from autoprune.model.outputs import Selector, select
from autoprune.task.metric_direction import Negated
from autoprune.task.recipe import DEFAULT_TUNING, DENSE_EPOCHS, Recipe

# Mandatory fields have a default so that a missing one is reported like an ill-typed one: a `TaskError` naming it.
_REQUIRED: Any = None


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
        device: where models are trained and scored: `cpu`, `cuda`, `cuda:1`, or `auto` for `cuda` where there is one.
            Batches of `train_step` are on it, and calls of the model in `metric` take and return tensors of the CPU.
            `build_model`, data, repair and results stay on the CPU. Never measured on a GPU.

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
    device: str = "cpu"

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
        return self.finetune_recipe or DEFAULT_TUNING

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

    @property
    def compute_device(self) -> torch.device:
        """The device that models are trained and scored on; `TaskError` where the host does not have it."""
        return compute_device(self.device)

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
    "device": _TEXT,
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
