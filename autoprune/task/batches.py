"""Reading data sets in batches; tensor data sets are indexed in one go instead of item by item."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from autoprune.model.examples import Items, as_parts, collated, item_of
from autoprune.model.randomness import seeded


def length(dataset: Dataset[Any]) -> int:
    """Number of items of a map-style data set."""
    return len(dataset)  # pyright: ignore[reportArgumentType]


def take(dataset: Dataset[Any], rows: Tensor) -> tuple[Tensor, ...]:
    """Return the items at `rows` (int64 `[N]`) as one batch: inputs `[N, ...]`, and then targets (see `collated`)."""
    if type(dataset) is TensorDataset:
        return tuple(tensor[rows] for tensor in dataset.tensors)
    if type(dataset) is Subset:
        return take(dataset.dataset, torch.as_tensor(dataset.indices)[rows])
    if isinstance(dataset, Items):
        return dataset.take(rows.tolist())
    return collated([as_parts(item_of(dataset, row)) for row in rows.tolist()])


def batches(dataset: Dataset[Any], batch_size: int, *, rows: Tensor | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Yield all items, or those at `rows`, in order, in batches of `batch_size`; the last batch may be smaller.

    Data sets that draw at random give the same batches every time.
    """
    chosen = torch.arange(length(dataset)) if rows is None else rows
    for number, part in enumerate(chosen.split(batch_size)):
        with seeded(0, number):
            batch = take(dataset, part)
        yield batch


def sample_rows(size: int, count: int, *, seed: int = 0) -> Tensor:
    """Draw `count` different row numbers below `size`, ascending; all rows when `count` is 0 or not below `size`.

    For one seed a smaller sample is part of every larger one.
    """
    if not 0 < count < size:
        return torch.arange(size)
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return shuffled[:count].sort().values
