"""What a fine-tuning shows a model: batches in a new order every epoch, some of them several times.

Asking the teacher costs a forward pass of the dense model, which for a small model is more than a step of its training.
Batches are then shown again with what the teacher said about them ("data echoing", Choi et al., 2019). At once it gains
nothing; in another order, a window of batches later, it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from autoprune import memory_limits
from autoprune.model.randomness import seeded
from autoprune.task.base import Task
from autoprune.task.batches import length, take
from autoprune.trials import FORWARD_SHARE

_MOST_TIMES = 4
_WINDOW = 64
"""Batches after which they are shown again, or fewer, as many as `memory_limits.REPEATED_BATCHES_BYTES` hold."""


@dataclass(frozen=True)
class Lesson:
    """A batch of `(inputs..., target)`, and what a teacher says about it."""

    batch: tuple[Tensor, ...]
    taught: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in (*self.batch, self.taught) if tensor is not None)


def times_shown(relative_cost: float) -> int:
    """How often a batch is shown that the teacher is asked about once: until training costs as much, at most 4 times.

    `relative_cost` is the cost of the model relative to the teacher's.
    """
    return max(1, round(FORWARD_SHARE / max(relative_cost, FORWARD_SHARE / _MOST_TIMES)))


def shuffled(
    task: Task, batch_size: int, samples: int, seed: int, *, plain_epochs: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """Augmented batches in a new order every epoch, `samples` examples in all; only the last two may be smaller.

    The last `plain_epochs` are not augmented. A batch is the same whatever was trained on those before: what data set
    and augmentation draw from the global random states depends on `seed` and the number of the batch.
    """
    generator = torch.Generator().manual_seed(seed)
    size = length(task.train_set)
    rows = torch.cat([torch.randperm(size, generator=generator) for _ in repeat(None, math.ceil(samples / size))])
    begin = 0
    for step, part in enumerate(_parts(rows[:samples], batch_size)):
        with seeded(seed, step):
            first, *others = take(task.train_set, part)
            if task.augment is not None and begin < samples - plain_epochs * size:
                first = task.augment(first, generator)
        begin += len(part)
        yield (first, *others)


def _parts(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Rows in batches. One example has no variance for batch norms: a last one takes another from those before it."""
    parts = list(rows.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1 < batch_size:
        # Of batches of two, the one before would then be of one: these become a batch of three.
        parts[-2:] = rows[-batch_size - 1 :].split(batch_size - 1 if batch_size > 2 else 3)
    return parts


def repeated(lessons: Iterable[Lesson], times: int, seed: int) -> Iterator[Lesson]:
    """Every lesson `times` times: as it comes, then again in windows, in new orders."""
    generator = torch.Generator().manual_seed(seed)
    window: list[Lesson] = []
    for lesson in lessons:
        yield lesson
        if times > 1:
            window.append(lesson)
        if len(window) == _WINDOW or sum(each.nbytes for each in window) > memory_limits.REPEATED_BATCHES_BYTES:
            yield from _again(window, times - 1, generator)
            window = []
    yield from _again(window, times - 1, generator)


def _again(window: list[Lesson], times: int, generator: torch.Generator) -> Iterator[Lesson]:
    for _ in range(times):
        yield from (window[place] for place in torch.randperm(len(window), generator=generator).tolist())
