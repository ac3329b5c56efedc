"""Parts of a training loop: learning-rate schedule, optimizer, number format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from autoprune.errors import UsageError
from autoprune.model.compute import CPU
from autoprune.task.recipe import Precision, Recipe

_WARM_UP = 0.05
"""Share of the training in which the cosine schedule rises linearly from 0."""

_RISE = 0.25
_START = 0.04
"""Share of the training in which the one-cycle schedule rises, and the rate it starts at as a share of the peak."""


def _cosine(progress: float) -> float:
    """Half a cosine after a linear warm-up. Source: Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983."""
    if progress < _WARM_UP:
        return progress / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


def _one_cycle(progress: float) -> float:
    """A long linear rise, then half a cosine. Source: Smith and Topin 2017, https://arxiv.org/abs/1708.07120."""
    if progress < _RISE:
        return _START + (1 - _START) * progress / _RISE
    return 0.5 * (1 + math.cos(math.pi * (progress - _RISE) / (1 - _RISE)))


_SCHEDULES: Mapping[str, Callable[[float], float]] = MappingProxyType({"cosine": _cosine, "one-cycle": _one_cycle})


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Return the learning rate at `progress`, the share of all examples that was trained on (0 to 1, both excluded)."""
    return recipe.lr * _SCHEDULES[recipe.schedule](progress)


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Make the recipe's optimizer: SGD with Nesterov momentum, or AdamW (https://arxiv.org/abs/1711.05101).

    Weight decay applies to matrices and filters, not to biases and norms.

    Raises:
        UsageError: no parameter of the model requires a gradient.
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


def uses_bf16(precision: Precision, device: torch.device = CPU) -> bool:
    """Whether to compute in bf16: for `bf16`, and for `auto` where the device multiplies bf16 matrices in hardware.

    On CPUs that is AMX. Others emulate bf16 or have only its dot product; they gain too little, or lose.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_amx_tile_supported())


def autocast(precision: Precision, device: torch.device = CPU) -> AbstractContextManager[object]:
    """Return a context in which a model on a device computes in the number format of a recipe."""
    return torch.autocast(device.type, torch.bfloat16) if uses_bf16(precision, device) else nullcontext()
