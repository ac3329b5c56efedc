"""A task that a search finishes in seconds: 8x8 digits, 300 examples, a small plain net."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import autoprune


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(64 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).flatten(1))


def make_task() -> autoprune.Task:
    images, targets = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(targets)
    recipe = autoprune.Recipe(epochs=6, batch_size=32, lr=0.05)
    return autoprune.Task(
        name="tiny",
        build_model=Net,
        example_inputs=(x[:1],),
        train_set=TensorDataset(x[:300], y[:300]),
        val_set=TensorDataset(x[300:500], y[300:500]),
        test_set=TensorDataset(x[500:700], y[500:700]),
        loss=F.cross_entropy,
        recipe=recipe,
        finetune_recipe=recipe,
    )


def not_finite() -> autoprune.Task:
    task = make_task()
    x, _ = task.train_set.tensors  # pyright: ignore[reportAttributeAccessIssue]
    x[0, 0, 0, 0] = float("nan")
    return task
