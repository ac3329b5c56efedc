"""Iterables of batches that cannot be indexed: read once, taken apart into items, and put together in the same form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune import memory_limits
from autoprune.errors import TaskError
from autoprune.model.nesting import tensors_in

_STACKED, _LISTED = "stacked", "listed"
"""Forms of a part of a batch: a tensor with the examples first, and a list with an entry for each example."""


@dataclass(frozen=True)
class Joining:
    """Makes a batch of items in the form that the batches of an iterable had.

    `form` is "stacked" for tensors, "listed" for lists with an entry for each example, and a dict or a tuple of forms
    for parts that nest.
    """

    form: Any

    def __call__(self, items: Sequence[Any]) -> Any:
        """Return items as one batch."""
        return _joined(items, self.form)


def read_batches(name: str, loader: Iterable[Any]) -> tuple[list[Any], Joining, int]:
    """Return all items of an iterable of batches, the function that makes a batch of items, and the first batch's size.

    Args:
        name: of the data in the task, for messages.
        loader: gives batches, each a tensor, a tuple or a dict, whose parts may nest.

    Raises:
        TaskError: a part has no entry for each example, or all batches are larger than
            `memory_limits.ITERABLE_DATA_BYTES`.
    """
    batches, held_bytes = [], 0
    for batch in loader:
        batches.append(_plain(batch if isinstance(batch, Mapping | list | tuple) else (batch,)))
        held_bytes += sum(tensor.nbytes for tensor in tensors_in(batches[-1]))
        if held_bytes > memory_limits.ITERABLE_DATA_BYTES:
            raise TaskError(
                f"{name} cannot be indexed, so it is read into memory, and it is larger than "
                f"{memory_limits.ITERABLE_DATA_BYTES >> 30} GiB; give a map-style data set, or a DataLoader over one"
            )
    sizes = [_size(batch) for batch in batches]
    form = _nested_form(batches, sizes) if batches else ()
    if form is None:
        shapes = [tuple(tensor.shape) for tensor in tensors_in(batches[0])]
        raise TaskError(
            f"{name} is no data set, so it must give batches of equally long tensors, or of lists with an entry for "
            f"each example; got tensors of {shapes}"
        )
    items = [_row(batch, form, row) for batch, size in zip(batches, sizes, strict=True) for row in range(size)]
    return items, Joining(form), sizes[0] if sizes else 1


def _plain(value: Any) -> Any:
    """Return nested data with dicts for all mappings and tensors for arrays and lists of numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        if value and all(isinstance(part, Number) for part in value):
            return torch.as_tensor(value)
        return tuple(_plain(part) for part in value)
    return torch.as_tensor(value) if isinstance(value, np.ndarray | np.generic | Number) else value


def _size(batch: Any) -> int:
    """Return the number of examples in a batch: the length of its first tensor, 0 without one."""
    first = next(iter(tensors_in(batch)), None)
    return len(first) if first is not None and first.ndim else 0


def _form(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Return the form of a part, which all batches must share; `None` where it has no entry for each example."""
    if all(isinstance(part, Tensor) for part in parts):
        fits = all(part.ndim and len(part) == size for part, size in zip(parts, sizes, strict=True))
        return _STACKED if fits else None
    if all(isinstance(part, tuple) and len(part) == size for part, size in zip(parts, sizes, strict=True)):
        return _LISTED
    return _nested_form(parts, sizes)


def _nested_form(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = parts[0]
    if all(isinstance(part, dict) and part.keys() == first.keys() for part in parts):
        forms = {key: _form([part[key] for part in parts], sizes) for key in first}
        return None if None in forms.values() else forms
    if all(isinstance(part, tuple) and len(part) == len(first) for part in parts):
        forms = tuple(_form(entries, sizes) for entries in zip(*parts, strict=True))
        return None if None in forms else forms
    return None


def _row(part: Any, form: Any, row: int) -> Any:
    if isinstance(form, dict):
        return {key: _row(part[key], form[key], row) for key in form}
    if isinstance(form, tuple):
        return tuple(_row(entry, each, row) for entry, each in zip(part, form, strict=True))
    return part[row]


def _joined(rows: Sequence[Any], form: Any) -> Any:
    if isinstance(form, dict):
        return {key: _joined([row[key] for row in rows], form[key]) for key in form}
    if isinstance(form, tuple):
        return tuple(_joined(entries, each) for entries, each in zip(zip(*rows, strict=True), form, strict=True))
    return torch.stack(list(rows)) if form == _STACKED else list(rows)
