"""Rows of embeddings that the data never use: removed, with a map of ids in front of what is left.

A removed id gets one row for all of them: their mean, which of all single rows is nearest to them in squares, or the
row of an id that the user names, such as that of an "unknown" token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import UsageError
from autoprune.model.acceptance import unwrap
from autoprune.model.copying import copy_of
from autoprune.task.base import Task
from autoprune.task.batches import batches

_BATCH = 64
MAP = ".rows_of_ids"
"""End of the name of a map of ids."""


class MappedEmbedding(nn.Module):
    """An embedding whose ids go through a map `rows_of_ids` int32 `[V, 1]` to the rows of a `weight` `[R, E]`."""

    rows_of_ids: Tensor

    def __init__(self, weight: Tensor, places: Tensor, padding_place: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("rows_of_ids", places.to(torch.int32)[:, None])
        self.padding_idx = padding_place
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ids `[...]`, `[..., E]`."""
        rows = functional.embedding(ids, self.rows_of_ids).squeeze(-1)
        return functional.embedding(rows, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        """Describe the map for `print(model)`."""
        return f"{len(self.rows_of_ids)} ids, {self.num_embeddings} rows, {self.embedding_dim}"


def cut_vocabulary(
    model: nn.Module, data: Task | Iterable[Any], *, unknown: int | None = None, spare: Iterable[int] = ()
) -> nn.Module:
    """Return a copy of a model without the rows of its embeddings that the data never use.

    Every embedding that loses rows becomes a `MappedEmbedding`: the map of ids is a buffer of the model, and so part of
    every file that is saved and a `Gather` of every ONNX file. Outputs on ids of the data stay the same. Embeddings
    whose weight another layer shares keep their rows, since that layer needs them.

    Args:
        model: the model; it is not changed.
        data: a task, whose training data count, or batches of inputs as `forward` takes them: tensors, tuples or dicts.
        unknown: id whose row removed ids get; it is kept. By default they get the mean of the removed rows.
        spare: further ids that keep their rows, such as those of digits.

    Raises:
        UsageError: no row can go, an id is not one of the model, or there is no data.

    Example:
        >>> import autoprune, torch
        >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 8), torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> ids = torch.tensor([[3, 5], [5, 7]])
        >>> small = autoprune.cut_vocabulary(model, [ids])
        >>> small[0]
        MappedEmbedding(100 ids, 4 rows, 8)
        >>> torch.equal(small(ids), model(ids))
        True
    """
    copy = copy_of(unwrap(model)).eval()
    used = _used_ids(copy, data)
    cut = 0
    for name, ids in used.items():
        table = copy.get_submodule(name)
        assert isinstance(table, nn.Embedding)
        mapped = _mapped(name, table, ids | set(spare), unknown)
        if mapped is not None:
            owner, _, leaf = name.rpartition(".")
            setattr(copy.get_submodule(owner), leaf, mapped)
            cut += 1
    if not cut:
        raise UsageError(
            "no row can go: rows go of nn.Embedding layers that share no weight and have rows that the data never use; "
            f"got {', '.join(used) or 'none of these layers'}"
        )
    return copy


def maps_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the maps of ids, int32 `[V, 1]`, among the tensors of a model or a file, by names of embeddings."""
    return {name.removesuffix(MAP): each for name, each in tensors.items() if name.endswith(MAP)}


def with_maps(model: nn.Module, maps: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a model whose embeddings have the rows of given maps of ids: means of the ids that share one.

    The model itself is returned without maps. Modules that a map does not fit stay as they are.
    """
    if not maps:
        return model
    copy = copy_of(model)
    modules = dict(copy.named_modules())
    for name, places in maps.items():
        table = modules.get(name)
        if type(table) is nn.Embedding and _fits(places, table.num_embeddings):
            owner, _, leaf = name.rpartition(".")
            setattr(copy.get_submodule(owner), leaf, _with_map(table, places.flatten().long()))
    return copy


def _fits(places: Tensor, ids: int) -> bool:
    integers = not places.is_floating_point() and places.shape == (ids, 1)
    return integers and bool(((places >= 0) & (places < ids)).all())


@torch.no_grad()
def _with_map(table: nn.Embedding, places: Tensor) -> MappedEmbedding:
    """Return the embedding of a map `[V]`."""
    ids_of_row = torch.bincount(places)
    weight = table.weight.new_zeros(len(ids_of_row), table.embedding_dim).index_add_(0, places, table.weight)
    padding = None if table.padding_idx is None else int(places[table.padding_idx])
    return MappedEmbedding(weight / ids_of_row.clamp(min=1)[:, None], places, padding)


def _used_ids(model: nn.Module, data: Task | Iterable[Any]) -> dict[str, set[int]]:
    """Return the ids that embeddings of their own weights read, by the names of the modules."""
    shared = _shared(model)
    tables = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Embedding and id(module.weight) not in shared and module.max_norm is None
    }
    used: dict[str, set[int]] = {name: set() for name in tables}

    def recorder(name: str) -> Any:
        return lambda _, inputs: used[name].update(inputs[0].unique().tolist())

    hooks = [table.register_forward_pre_hook(recorder(name)) for name, table in tables.items()]
    ran = 0
    try:
        with torch.no_grad():
            for inputs in _inputs(data):
                model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
                ran += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise UsageError("the vocabulary of the data takes at least one batch of inputs; got none")
    return used


def _shared(model: nn.Module) -> set[int]:
    """Return the identities of parameters that several modules hold."""
    seen: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {each for each, count in seen.items() if count > 1}


def _inputs(data: Task | Iterable[Any]) -> Iterable[Any]:
    if isinstance(data, Task):
        yield from (data.split(batch)[0] for batch in batches(data.train_set, _BATCH))
        return
    if isinstance(data, Tensor | Mapping):
        raise UsageError(f"batches are a list of batches of inputs; got one {type(data).__name__}, so pass [batch]")
    for batch in data:
        yield batch if isinstance(batch, Mapping | tuple | list) else (batch,)


def _mapped(name: str, table: nn.Embedding, used: set[int], unknown: int | None) -> MappedEmbedding | None:
    """Return the embedding of the ids that are used; `None` where all rows stay."""
    count = table.num_embeddings
    kept = used | ({unknown} if unknown is not None else set())
    kept |= {table.padding_idx} if table.padding_idx is not None else set()
    wrong = [each for each in kept if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < count]
    if wrong:
        raise UsageError(f"ids of {name!r} are whole numbers from 0 to {count - 1}; got {wrong[0]!r}")
    rows = torch.tensor(sorted(kept))
    gone = torch.ones(count, dtype=torch.bool)
    gone[rows] = False
    extra = 1 if unknown is None else 0
    if len(rows) + extra >= count:
        return None
    weight = table.weight.detach()
    parts = [weight[rows], *([weight[gone].mean(0, keepdim=True)] if extra else [])]
    place = len(rows) if unknown is None else int((rows == unknown).nonzero())
    places = torch.full((count,), place)
    places[rows] = torch.arange(len(rows))
    padding = None if table.padding_idx is None else int(places[table.padding_idx])
    return MappedEmbedding(torch.cat(parts).clone(), places, padding)
