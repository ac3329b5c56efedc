"""Outputs of a captured model: which ones count, and which may lose channels because others are computed from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx

from autoprune.model.outputs import Selector, output_names, selected_leaves
from autoprune.structure.capture import Capture


def with_narrow_outputs(capture: Capture, selector: Selector) -> Capture:
    """Return a capture that knows which of its outputs may lose channels.

    An output that the selector does not read may, where an output that it reads is computed from it, such as the hidden
    states of an encoder beside logits. An output that nothing else reads is a head of its own and keeps its size.
    """
    leaves = output_leaves(capture.graph)
    examples = [leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    selected = selected_leaves(capture.out_spec, examples, selector)
    behind = _behind(leaf for number, leaf in enumerate(leaves) if number in selected)
    narrow = {number for number, leaf in enumerate(leaves) if number not in selected and leaf in behind}
    names = output_names(capture.out_spec)
    counted = None if selector is None else tuple(names[number] for number in sorted(selected))
    return replace(capture, narrow=frozenset(narrow), counted=counted)


def fixed_outputs(capture: Capture) -> dict[fx.Node, str]:
    """Return the nodes of the outputs that keep their channels, and the reason for the user."""
    names = output_names(capture.out_spec)
    fixed: dict[fx.Node, str] = {}
    for number, leaf in enumerate(output_leaves(capture.graph)):
        if isinstance(leaf, fx.Node) and number not in capture.narrow:
            named = f"an output of the model ({names[number]})" if names[number] else "an output of the model"
            fixed.setdefault(leaf, named)
    return fixed


def output_leaves(graph: fx.Graph) -> list[object]:
    """Return what a graph puts out, flat: nodes, numbers and `None`."""
    (outputs,) = next(node for node in reversed(graph.nodes) if node.op == "output").args
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def _behind(nodes: Iterable[object]) -> set[fx.Node]:
    """Return all nodes that some nodes are computed from, these nodes included only where they read each other."""
    todo = [source for node in nodes if isinstance(node, fx.Node) for source in node.all_input_nodes]
    behind: set[fx.Node] = set()
    while todo:
        node = todo.pop()
        if node not in behind and isinstance(node.meta.get("val"), torch.Tensor | tuple | list):
            behind.add(node)
            todo += node.all_input_nodes
    return behind
