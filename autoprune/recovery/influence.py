"""Influence of a policy on the graph of a model: the nodes behind everything that it removes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from autoprune.structure import Structure
from autoprune.structure.aliases import is_in_place, owners

_SHIFTED = torch.ops.aten.addmm.default
"""A product whose first operand is what is added."""


@dataclass(frozen=True, kw_only=True)
class Influence:
    """Names of the nodes of a shrunk graph that removed channels and branches influence.

    The value of a `touched` node differs from the dense model's. So does the first input of a `fed` node; touched nodes
    that are not fed are only narrower themselves.
    """

    touched: set[str]
    fed: set[str]


def influence(structure: Structure, graph: fx.Graph, masks: Mapping[tuple[str, str, int], np.ndarray]) -> Influence:
    """Return the nodes that a policy changes in the evaluation graph of a shrunk model.

    Once a changed node has written in place, all nodes that read the same memory later are changed, too.

    Args:
        structure: the dense model.
        graph: evaluation graph of the shrunk model.
        masks: `Structure.masks` of the policy: bool masks of the kept indices.
    """
    narrower = {(kind, name) for (kind, name, _), mask in masks.items() if not mask.all()}
    sources = {n.name: n.all_input_nodes for n in structure.captures[False].graph.nodes}
    memory = owners(graph)
    touched: set[str] = set()
    fed: set[str] = set()
    written: set[fx.Node] = set()
    for node in graph.nodes:
        changed = [n.name in touched or memory.get(n) in written for n in node.all_input_nodes]
        bypassing = [n.name for n in node.all_input_nodes] != [n.name for n in sources.get(node.name, [])]
        own = ("parameter", str(node.target)) if node.op == "get_attr" else ("eval", node.name)
        if bypassing or own in narrower or any(changed):
            touched.add(node.name)
            if is_in_place(node) and node in memory:
                written.add(memory[node])
        first = node.all_input_nodes.index(node.args[1]) if node.target is _SHIFTED else 0
        if bypassing or any(changed[first : first + 1]):
            fed.add(node.name)
    return Influence(touched=touched, fed=fed)
