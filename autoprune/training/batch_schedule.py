"""Batches of a fine-tuning: in a new order every epoch, and some of them several times.

Asking the teacher costs a forward pass of the dense model, which for a small model is more than a step of its training.
Batches are then trained on again with the teacher outputs of the first time. Repeating a batch at once gains nothing;
repeating it in another order, a window of batches later, does (measured).

Source: "data echoing", Choi et al. 2019, https://arxiv.org/abs/1907.05550.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from autoprune import memory_limits
from autoprune.model.nesting import tensors_in
from autoprune.model.randomness import seeded
from autoprune.task.base import Task
from autoprune.task.batches import length, take
from autoprune.trials import FORWARD_SHARE

_MOST_REPEATS = 4
_WINDOW = 64
"""Batches after which they are repeated; fewer where these take more than `memory_limits.REPEATED_BATCHES_BYTES`."""


@dataclass(frozen=True)
class TrainingBatch:
    """A batch `(inputs..., target)` and the teacher's outputs on it (`None`: no teacher was asked), by layer, too."""

    tensors: tuple[Tensor, ...]
    teacher_outputs: Tensor | None = None
    teacher_layers: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """Number of examples in the batch."""
        return len(self.tensors[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the batch."""
        return sum(
            tensor.nbytes for tensor in tensors_in((self.tensors, self.teacher_outputs, dict(self.teacher_layers)))
        )


def repeats_per_batch(relative_cost: float) -> int:
    """Return how often to train on a batch for one pass of the teacher: until training costs as much, at most 4 times.

    `relative_cost` is the number of MACs of the trained model as a share of the teacher's.
    """
    return max(1, round(FORWARD_SHARE / max(relative_cost, FORWARD_SHARE / _MOST_REPEATS)))


def shuffled(
    task: Task, batch_size: int, samples: int, seed: int, *, plain_epochs: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """Yield augmented batches in a new order every epoch, `samples` examples in all; only the last two may be smaller.

    The last `plain_epochs` are not augmented. A batch does not depend on the training between batches: the global
    random states that data sets and augmentations draw from depend on `seed` and the number of the batch alone.
    """
    generator = torch.Generator().manual_seed(seed)
    size = length(task.train_set)
    rows = torch.cat([torch.randperm(size, generator=generator) for _ in repeat(None, math.ceil(samples / size))])
    begin = 0
    for number, part in enumerate(_parts(rows[:samples], batch_size)):
        with seeded(seed, number):
            first, *others = take(task.train_set, part)
            if task.augment is not None and begin < samples - plain_epochs * size:
                first = task.augment(first, generator)
        begin += len(part)
        yield (first, *others)


def _parts(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Split rows into batches, the last one never of a single row: batch norms need a variance."""
    parts = list(rows.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1 < batch_size:
        # With batches of two, moving a row would leave the last but one with a single row: the two become one of three.
        parts[-2:] = rows[-batch_size - 1 :].split(batch_size - 1 if batch_size > 2 else 3)
    return parts


def repeated(batches: Iterable[TrainingBatch], repeats: int, seed: int) -> Iterator[TrainingBatch]:
    """Yield every batch `repeats` times: a window of batches as they come, then the window again in new orders."""
    generator = torch.Generator().manual_seed(seed)
    window: list[TrainingBatch] = []
    for batch in batches:
        yield batch
        if repeats > 1:
            window.append(batch)
        if len(window) == _WINDOW or sum(each.nbytes for each in window) > memory_limits.REPEATED_BATCHES_BYTES:
            yield from _reordered(window, repeats - 1, generator)
            window = []
    yield from _reordered(window, repeats - 1, generator)


def _reordered(window: list[TrainingBatch], times: int, generator: torch.Generator) -> Iterator[TrainingBatch]:
    for _ in range(times):
        yield from (window[index] for index in torch.randperm(len(window), generator=generator).tolist())
