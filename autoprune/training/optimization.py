"""The pieces of a training loop: schedule, optimizer, number format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from autoprune.errors import UsageError
from autoprune.task.base import Precision, Recipe

_WARM_UP = 0.05
_RISE = 0.25


def _cosine(progress: float) -> float:
    if progress < _WARM_UP:
        return progress / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


def _one_cycle(progress: float) -> float:
    if progress < _RISE:
        return 0.04 + 0.96 * progress / _RISE
    return 0.5 * (1 + math.cos(math.pi * (progress - _RISE) / (1 - _RISE)))


_SCHEDULES: Mapping[str, Callable[[float], float]] = MappingProxyType({"cosine": _cosine, "one-cycle": _one_cycle})


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Learning rate when the share `progress` of all examples was seen: above 0 in the middle of every step."""
    return recipe.lr * _SCHEDULES[recipe.schedule](progress)


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """SGD with Nesterov momentum, or AdamW; weight decay on matrices and filters alone, not on biases and norms.

    Raises `UsageError` for a model in which nothing can be trained.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(
            f"training takes parameters that require a gradient; none of the {sum(1 for _ in model.parameters())} of "
            "the model does. Unfreeze some: model.requires_grad_()"
        )
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), foreach=True)
    return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, foreach=True)


def uses_bf16(precision: Precision) -> bool:
    """Whether to compute in bf16: on demand, or by itself where the CPU multiplies bf16 matrices in hardware (AMX).

    CPUs that only emulate bf16, or only have its dot product, gain too little or lose.
    """
    if precision == "auto":
        return bool(torch.cpu._is_amx_tile_supported())
    return precision == "bf16"


def autocast(precision: Precision) -> AbstractContextManager[object]:
    """A context in which the model computes in the number format of a recipe."""
    return torch.autocast("cpu", torch.bfloat16) if uses_bf16(precision) else nullcontext()
