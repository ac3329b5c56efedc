"""Names of the inputs and outputs of an ONNX graph: the arguments of `forward`, and the keys of what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence

import onnx
from torch import nn
from torch.export import ExportedProgram

from autoprune.model.outputs import output_names
from autoprune.structure import GraphModel


def input_names(model: nn.Module, count: int) -> list[str]:
    """Return names for the `count` inputs of a model: the arguments of its `forward`; those of `*x` are `x_0`, ..."""
    if isinstance(model, GraphModel):
        return list(model.input_names)
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        many = parameter.kind is parameter.VAR_POSITIONAL
        names += [f"{parameter.name}_{n}" for n in range(count - len(names))] if many else [parameter.name]
    return names[:count]


def name_outside(graph: onnx.GraphProto, inputs: Sequence[str], program: ExportedProgram | None) -> None:
    """Name the inputs and outputs of a graph; other values that have such a name already get another one.

    Weights keep their names: an input or output that is called like a weight gets a number. A single tensor without a
    key is called `output`, the tensors of a tuple `output_0`, `output_1`. An output that is a weight has its name.
    """
    weights = {initializer.name for initializer in graph.initializer}
    outputs = _output_names(graph, program)
    wanted = _unique([*inputs, *outputs], weights)
    before = [value.name for value in (*graph.input, *graph.output)]
    if len(wanted) != len(before) or len(set(before)) != len(before):
        return  # an output that is an input or is given twice: the exporter's names stay
    new = {old: name for old, name in zip(before, wanted, strict=True) if old not in weights}
    taken = {*weights, *before, *wanted, *(name for node in graph.node for name in node.output)}
    for node in graph.node:
        for name in node.output:
            if name in wanted and name not in new:
                new[name] = _free(name, taken)
    rename(graph, new)


def rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Rename values of a graph wherever they are named."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                rename(inner, new)


def _output_names(graph: onnx.GraphProto, program: ExportedProgram | None) -> list[str]:
    """Return a name for every output of the graph: those of the tensors among what the model returns."""
    spec = None if program is None else program.call_spec.out_spec
    names = [] if spec is None or program is None else output_names(spec)
    if program is not None and len(names) != len(graph.output):
        (leaves,) = program.graph.output_node().args
        tensors = [hasattr(leaf, "meta") for leaf in leaves] if isinstance(leaves, tuple | list) else []
        names = [name for name, tensor in zip(names, tensors[-len(names) :], strict=False) if tensor]
    if len(names) != len(graph.output):
        names = [str(number) for number in range(len(graph.output))]
    return [f"output_{name}" if name.isdigit() else name or "output" for name in names]


def _unique(names: Iterable[str], taken: set[str]) -> list[str]:
    unique, used = [], set(taken)
    for name in names:
        unique.append(_free(name, used) if name in used else name)
        used.add(unique[-1])
    return unique


def _free(name: str, taken: set[str]) -> str:
    """Return a name with the first number that makes it new, and add it to those that are taken."""
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"
