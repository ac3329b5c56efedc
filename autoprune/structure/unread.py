"""Nodes of a captured graph that are left out: those that nothing reads, and assertions."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

_WITH_STATISTICS = {torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default}
"""Operators that write running statistics in training, which their schemas do not say."""


def erase_unread(graph: fx.Graph) -> None:
    """Erase nodes that nothing reads, which would look like units; those that write or draw numbers stay."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not _has_effect(node.target):
            graph.erase_node(node)


def _has_effect(target: Any) -> bool:
    """Return whether an operator does more than compute its output."""
    if not isinstance(target, OpOverload):
        return target is not operator.getitem
    writes = target._schema.is_mutable or target in _WITH_STATISTICS
    return writes or not target._schema.returns or torch.Tag.nondeterministic_seeded in target.tags


def erase_assertions(graph: fx.Graph) -> None:
    """Erase the exporter's assertions on types: under `torch.autocast`, values have other types than in the capture."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
