"""Shared memory in a graph: views, in-place operators and parts of tuples use the memory of their input."""

from __future__ import annotations

import operator

import torch
from torch import fx

_IDENTITIES = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
"""Operators that return their input in evaluation, though their schema promises a new tensor."""


def owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return the node that allocated the memory of every activation; weights and views of weights are left out."""
    allocated_by: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function") or not tensors_of(node):
            continue
        if not _aliases(node):
            allocated_by[node] = node
        elif node.all_input_nodes[0] in allocated_by:
            allocated_by[node] = allocated_by[node.all_input_nodes[0]]
    return allocated_by


def is_in_place(node: fx.Node) -> bool:
    """Return whether a node writes into one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def tensors_of(node: fx.Node) -> list[torch.Tensor]:
    """Return the tensors that a node returned at capture time."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [tensor for tensor in values if isinstance(tensor, torch.Tensor)]


def _aliases(node: fx.Node) -> bool:
    """Return whether a node's output is its first input or a part of it: views, in-place operators, parts of tuples."""
    if node.op == "placeholder" or not node.all_input_nodes:
        return False
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    if schema.name.split("::")[-1].rstrip("_") in _IDENTITIES:
        return True
    source, output = tensors_of(node.all_input_nodes[0]), tensors_of(node)
    shares = any(returned.alias_info is not None for returned in schema.returns)
    return shares and bool(source) and source[0].dtype == output[0].dtype  # `to` copies when the type changes
