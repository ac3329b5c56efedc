"""A task of five words a sentence, of 200 that the model knows and 20 that occur."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import autoprune


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 16, padding_idx=0)
        self.hidden, self.head = nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.words(ids).mean(1))))


def sentences(count: int, seed: int) -> TensorDataset:
    """Words 10 to 19 in one class, and 30 to 39 in the other."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    return TensorDataset(torch.randint(10, 20, (count, 5), generator=generator) + 20 * targets[:, None], targets)


def make_task() -> autoprune.Task:
    recipe = autoprune.Recipe(epochs=4, batch_size=16, optimizer="adamw", lr=0.01, precision="fp32")
    return autoprune.Task(
        name="words",
        build_model=Net,
        example_inputs=(torch.tensor([[10, 11, 12, 13, 14]]),),
        train_set=sentences(200, 0),
        val_set=sentences(64, 1),
        test_set=sentences(64, 2),
        loss=F.cross_entropy,
        recipe=recipe,
        finetune_recipe=recipe,
    )
