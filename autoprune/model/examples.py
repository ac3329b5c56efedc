"""Data sets as users hold them, read as items `(inputs..., target)`: dicts by key, loaders by their data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from autoprune.errors import TaskError
from autoprune.model.acceptance import users_line
from autoprune.model.nesting import tensors_in
from autoprune.model.randomness import seeded
from autoprune.model.streams import read_batches


def as_tensors(item: object) -> tuple[Tensor, ...]:
    """Return one data item as a tuple of tensors; numbers and numpy arrays become tensors.

    Raises:
        TaskError: a part cannot become a tensor.
    """
    parts = item if isinstance(item, tuple | list) else (item,)
    try:
        return tuple(torch.as_tensor(part) for part in parts)
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TaskError(f"a data item is a tuple (inputs..., target) of tensors; got ({kinds})") from error


def as_parts(item: object) -> tuple[Any, ...]:
    """Return one data item as a tuple of parts: tensors, and behind the first one anything else as it is.

    Raises:
        TaskError: the first part, an input, cannot become a tensor.
    """
    parts = item if isinstance(item, tuple | list) else (item,)
    if not parts:
        raise TaskError("a data item is a tuple (inputs..., target); got an empty one")
    return (*as_tensors((parts[0],)), *map(_tensor_or_same, parts[1:]))


def collated(items: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return items as one batch: tensors are stacked; parts that cannot be are lists with an entry for each example.

    Such parts are targets of different sizes, such as boxes, and dicts.

    Raises:
        TaskError: the first input has different shapes, or items have different numbers of parts.
    """
    try:
        first, *others = zip(*items, strict=True)
        return (default_collate(list(first)), *map(_stacked_or_list, others))
    except (RuntimeError, ValueError, TypeError) as error:
        raise TaskError(f"all items of a data set must have the same shapes; batching failed: {error}") from error


def _stacked_or_list(parts: Sequence[Any]) -> Any:
    alike = all(isinstance(part, Tensor) for part in parts) and len({part.shape for part in parts}) == 1
    return default_collate(list(parts)) if alike else list(parts)


def _tensor_or_same(part: Any) -> Any:
    """Return numbers and arrays as a tensor; a list that holds tensors has an entry for each example, and stays."""
    if isinstance(part, list | tuple) and tensors_in(part):
        return part
    try:
        return torch.as_tensor(part)
    except (TypeError, ValueError, RuntimeError):
        return part


def is_dataset(value: object) -> bool:
    """Return whether a value can serve as a map-style data set: it has a length and can be indexed."""
    # An `IterableDataset` inherits a `__getitem__` that only raises.
    return isinstance(value, Sized) and hasattr(value, "__getitem__") and not isinstance(value, IterableDataset)


def is_data(value: object) -> bool:
    """Return whether a value is a map-style data set or an iterable of batches."""
    return (is_dataset(value) or isinstance(value, Iterable)) and not isinstance(value, str | Tensor | Mapping)


def item_of(source: Any, row: int) -> Any:
    """Return one item of a user's data set; raise `TaskError` with the failing line when reading it fails."""
    try:
        return source[row]
    except Exception as error:
        raise TaskError(
            f"item {row} of {type(source).__name__} cannot be read: {type(error).__name__}: {error}{users_line(error)}"
        ) from error


@dataclass(frozen=True)
class Items(Dataset[tuple[Tensor, ...]]):
    """A map-style data set of tuples of tensors, over a data set of dicts or over the data set of a loader.

    - `source`: the user's data set.
    - `keys`: of its dicts, in the order of the tuple (`()`: its items are tuples already).
    - `collate`: makes a batch of items (`None`: PyTorch's default).
    - `batch_size`: of the loader that the user gave (`None`: the user gave a data set).
    """

    source: Dataset[Any]
    keys: tuple[str, ...]
    collate: Callable[[list[Any]], Any] | None
    batch_size: int | None

    def __len__(self) -> int:
        return len(self.source)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        if self.collate is not None:
            return tuple(part[0] if isinstance(part, Tensor | list | tuple) else part for part in self.take([row]))
        return as_parts(_parts(item_of(self.source, row), self.keys))

    def take(self, rows: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the items at `rows` as one batch; raise `TaskError` when they cannot be batched."""
        items = [item_of(self.source, row) for row in rows]
        if self.collate is not None:
            return as_parts(_parts(self.collate(items), self.keys))
        return collated([as_parts(_parts(item, self.keys)) for item in items])


def original(dataset: Dataset[Any]) -> Any:
    """Return the data as the user gave it, for a data set or a `Subset`: a data set of the same items, or a loader."""
    rows = None
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, Items):
        dataset, rows = dataset.dataset, dataset.indices
    if not isinstance(dataset, Items):
        return dataset
    chosen = dataset.source if rows is None else Subset(dataset.source, rows)
    if dataset.batch_size is None:
        return chosen
    return DataLoader(chosen, batch_size=dataset.batch_size, collate_fn=dataset.collate)


def items_of(name: str, data: Any, inputs: tuple[str, ...], target: str, *, all_keys: bool, labelled: bool) -> Any:
    """Return a map-style data set of tuples for the data that the user gave.

    Args:
        name: of the data in the task, for messages.
        data: a map-style data set, a loader, or an iterable of batches.
        inputs: keys of the model's inputs, where items are dicts.
        target: key of the target (default: the only other key that holds numbers).
        all_keys: whether all further keys with numbers follow.
        labelled: whether the target follows the inputs.

    Raises:
        TaskError: the data has no items, an item lacks a key, or the target is not clear.
    """
    source, collate, batch_size = data, None, None
    if not is_dataset(data):
        with seeded(0):  # all processes that load the task must read the same items
            source, collate, batch_size = _loaded(name, data)
    if not len(source):
        raise TaskError(f"a task's {name} must hold at least one item; it is empty")
    if isinstance(source, Items):
        return source
    first = item_of(source, 0)
    if collate is not None:
        first = collate([first])
    keys = ()
    if isinstance(first, Mapping):
        keys = _keys(name, first, inputs, target, all_keys=all_keys, labelled=labelled)
    return source if not keys and batch_size is None else Items(source, keys, collate, batch_size)


def _parts(item: Any, keys: tuple[str, ...]) -> Any:
    """Return the parts of a dict by key, in order; without keys, the item itself."""
    return tuple(item[key] for key in keys) if keys else item


def _keys(
    name: str, item: Mapping[str, Any], inputs: tuple[str, ...], target: str, *, all_keys: bool, labelled: bool
) -> tuple[str, ...]:
    """Return the keys of a dict item that make its tuple (arguments as in `items_of`)."""
    if not inputs:
        raise TaskError(
            f"items of {name} are dicts, so example_inputs must be one too: the model's keywords and a tensor for each"
        )
    absent = [key for key in (*inputs, *filter(None, [target])) if key not in item]
    if absent:
        raise TaskError(f"an item of {name} needs {', '.join(absent)}; it has {', '.join(map(str, item))}")
    others = [key for key in item if key not in inputs and _is_number_like(item[key])]
    if all_keys:
        others = [key for key in item if key not in inputs and (key in others or tensors_in(item[key]))]
    if target:
        others = [target, *(key for key in others if key != target)]
    if labelled and not target and len(others) != 1:
        raise TaskError(
            f"an item of {name} must have one target; besides the inputs it has {', '.join(others) or 'nothing'}. Name "
            "the target by `target=`"
        )
    return (*inputs, *(others if all_keys else others[:1] if labelled else ()))


def _is_number_like(value: Any) -> bool:
    try:
        torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _loaded(name: str, loader: Iterable[Any]) -> tuple[Any, Callable[[list[Any]], Any], int]:
    """Return a loader's data set, its function that makes a batch, and its batch size.

    An iterable that is no `DataLoader` over a map-style data set is read into memory.
    """
    source = getattr(loader, "dataset", None)
    size = getattr(loader, "batch_size", None)
    if isinstance(loader, DataLoader) and is_dataset(source) and loader.collate_fn is not None:
        if size is None and loader.batch_sampler is not None:
            size = 32  # a user's batch sampler may give batches of different sizes
        if size is not None:
            return source, loader.collate_fn, size
    return read_batches(name, loader)
