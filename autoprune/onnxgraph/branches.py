"""Removed residual branches in ONNX graphs: the same propagation of absence as in captured ones."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet

import onnx
from onnx import helper

from autoprune.errors import LatencyError

_IDEMPOTENT = frozenset({"Relu", "Clip"})


def remove_branches(graph: onnx.GraphProto, absent: AbstractSet[str]) -> None:
    """Remove from `graph` everything computed from the weights `absent`, and the nodes that only served it.

    An addition of an absent value and another one passes the other on; one of a constant is absent itself. Activations
    that then repeat each other become one, as the exporter does. Initializers that nothing reads any more go too.
    Raises `LatencyError` when nothing would be left of an output.
    """
    constants = {i.name for i in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
    passed: dict[str, str] = {}
    gone = set(absent)
    running: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        node.input[:] = [passed.get(name, name) for name in node.input]
        remaining = [name for name in node.input if name not in gone]
        before = running.get(node.input[0]) if node.input and node.op_type in _IDEMPOTENT else None
        if before is not None and before.op_type == node.op_type and before.input[1:] == node.input[1:]:
            passed[node.output[0]] = node.input[0]
        elif len(remaining) == len(node.input):
            running.update(dict.fromkeys(node.output, node))
        elif node.op_type == "Add" and remaining and remaining[0] not in constants:
            passed[node.output[0]] = remaining[0]
        else:
            gone.update(node.output)
    sources = {entry.name: passed.get(entry.name, entry.name) for entry in graph.output}
    if taken := sorted(name for name, source in sources.items() if source in gone):
        raise LatencyError(f"removing a branch would take the outputs {', '.join(taken)} with it")
    kept = serving([node for node in graph.node if node.output[0] in running], set(sources.values()))
    for name, source in sources.items():
        if source != name:  # the output of a removed branch is what went into it
            kept += _named(kept, source, name, sources)
    read = {name for node in kept for name in node.input}
    weights = [initializer for initializer in graph.initializer if initializer.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)


def _named(nodes: list[onnx.NodeProto], value: str, name: str, outputs: Collection[str]) -> list[onnx.NodeProto]:
    """Give a value of `nodes` another name; return a node that copies it where it is an input or an output itself."""
    if value in outputs or not any(value in node.output for node in nodes):
        return [helper.make_node("Identity", [value], [name])]
    for node in nodes:
        node.input[:] = [name if entry == value else entry for entry in node.input]
        node.output[:] = [name if entry == value else entry for entry in node.output]
    return []


def serving(nodes: list[onnx.NodeProto], outputs: AbstractSet[str]) -> list[onnx.NodeProto]:
    """The nodes that some output depends on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]
