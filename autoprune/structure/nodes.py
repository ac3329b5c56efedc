"""Facts that a node of a captured graph carries: shapes at capture time, symbolic sizes, arguments by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

FREE = "free_sizes"
"""Key of a node's `meta`: for each dimension of its first tensor the symbols, besides the batch, in its size."""


def concrete(value: Any, batch: int = 3) -> Any:
    """Turn symbolic sizes, also in lists and tuples, into the integers that they had during capture."""
    if isinstance(value, torch.SymInt):
        hint = value.node.hint
        return int(hint) if hint is not None else batch
    if isinstance(value, fx.Node):  # a size that is computed in the graph
        return concrete(value.meta["val"], batch) if "val" in value.meta else value
    if isinstance(value, (list, tuple, torch.Size)):
        kind = tuple if isinstance(value, torch.Size) else type(value)
        return kind(concrete(v, batch) for v in value)
    return value


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor at capture time; `()` when the node is not one tensor."""
    value = node.meta.get("val")
    return concrete(value.shape) if isinstance(value, torch.Tensor) else ()


def symbolic_dims(node: fx.Node) -> set[int]:
    """Return the dimensions of a node's (first) tensor whose size depends on the batch."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    sizes = first.shape if isinstance(first, torch.Tensor) else ()
    return {d for d, size in enumerate(sizes) if isinstance(size, torch.SymInt)}


def argument(node: fx.Node, name: str) -> Any:
    """Return an argument of an ATen operator by its name in the schema, or the schema's default."""
    for position, parameter in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if parameter.name == name:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(name)
            return parameter.default_value if given is None else given
    raise KeyError(f"{node.target} has no argument {name!r}")
