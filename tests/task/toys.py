"""A tiny task that trains in milliseconds; other test folders may use it as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from autoprune.task.base import Task


def toy_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def toy_data(count: int, seed: int) -> TensorDataset:
    """Images 6x6 with one bright quadrant; the target says which."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 4
    images = torch.rand(count, 1, 6, 6, generator=generator)
    for row, target in enumerate(targets.tolist()):
        top, left = 3 * (target // 2), 3 * (target % 2)
        images[row, 0, top : top + 3, left : left + 3] += 1.0
    return TensorDataset(images, targets)


def toy_task(**changes: Any) -> Task:
    given: dict[str, Any] = {
        "name": "toy",
        "build_model": toy_model,
        "example_inputs": (torch.zeros(1, 1, 6, 6),),
        "train_set": toy_data(96, 0),
        "val_set": toy_data(32, 1),
        "test_set": toy_data(32, 2),
        "loss": F.cross_entropy,
    }
    return Task(**given | changes)


def unlabelled_task(**changes: Any) -> Task:
    """The toy without targets: what is right is what the dense model says."""
    sets = {name: TensorDataset(toy_data(48, 3).tensors[0]) for name in ("train_set", "val_set", "test_set")}
    return toy_task(loss=None, **sets | changes)
