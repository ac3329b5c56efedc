"""Which nodes of a graph share memory: views, in-place operators and parts of tuples keep that of their input."""

from __future__ import annotations

import operator

import torch
from torch import fx

# Their schema promises a new tensor, but in evaluation they return their input.
_IDENTITIES = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})


def owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The node that allocated the memory of every activation; weights, and views of weights, have none."""
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function") or not tensors_of(node):
            continue
        if not _aliases(node):
            found[node] = node
        elif node.all_input_nodes[0] in found:
            found[node] = found[node.all_input_nodes[0]]
    return found


def is_in_place(node: fx.Node) -> bool:
    """Whether a node changes an argument."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def tensors_of(node: fx.Node) -> list[torch.Tensor]:
    """The tensors that a node returns, as they were at capture time."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [tensor for tensor in values if isinstance(tensor, torch.Tensor)]


def _aliases(node: fx.Node) -> bool:
    """Whether the output of a node is (a part of) its first input: views, in-place operators, parts of a tuple."""
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
