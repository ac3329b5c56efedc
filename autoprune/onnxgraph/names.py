"""Names of the inputs and outputs of an ONNX graph: the arguments of `forward`, and the keys of what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx
from torch import nn
from torch.export import ExportedProgram

from autoprune.errors import UsageError
from autoprune.model.outputs import output_names
from autoprune.onnxgraph.axes import rename_axes
from autoprune.structure import GraphModel

_MOST_DIMENSIONS = 16
"""Dimensions of an input whose names are renamed with it; PyTorch exports fewer."""


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


def checked_names(kind: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return names that are given for all inputs or all outputs of a file; the known ones where none are given.

    Args:
        kind: "input" or "output".
        given: names in their order; a single text is one name.
        known: names that they replace.

    Raises:
        UsageError: when there are more or fewer than the file has, or one is empty or given twice.
    """
    names = [given] if isinstance(given, str) else list(given)
    if not names:
        return list(known)
    if len(names) != len(known):
        have = f"{len(known)} {kind}{'s' if len(known) != 1 else ''} ({', '.join(known)})"
        raise UsageError(f"the model has {have}; got {len(names)}: {', '.join(names)}")
    if not all(name.strip() for name in names) or len(set(names)) < len(names):
        given_as = ", ".join(map(repr, names))
        raise UsageError(f"names of {kind}s are not empty and differ from each other; got {given_as}")
    return names


def with_names(
    model: onnx.ModelProto, input_names: Sequence[str] = (), output_names: Sequence[str] = ()
) -> onnx.ModelProto:
    """Return a copy of a model whose inputs and outputs, and the named sizes of inputs, have other names.

    Args:
        model: that stays as it is.
        input_names: for all inputs in their order; by default they keep theirs.
        output_names: for all outputs in their order.

    Raises:
        UsageError: for a number of names that does not fit, and names that are empty, given twice or those of weights.
    """
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    graph = renamed.graph
    inputs, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
    pairs = dict(zip(inputs, checked_names("input", input_names, inputs), strict=True))
    pairs |= dict(zip(outputs, checked_names("output", output_names, outputs), strict=True))
    wanted, weights = set(pairs.values()), {initializer.name for initializer in graph.initializer}
    if len(wanted) < len(pairs):
        raise UsageError(f"an input and an output have different names; got {', '.join(pairs.values())}")
    if taken := sorted(wanted & (weights - pairs.keys())):
        raise UsageError(f"the model has weights of the name {', '.join(taken)}: choose another")
    new = {old: name for old, name in pairs.items() if old not in weights}
    free = {*weights, *wanted, *_inner_names(graph)}
    new |= {name: _free(name, free) for name in _inner_names(graph) if name in wanted and name not in new}
    rename(graph, new)
    numbers = range(_MOST_DIMENSIONS)
    rename_axes(graph, {f"{old}_{dim}": f"{name}_{dim}" for old, name in new.items() for dim in numbers})
    return renamed


def renamed_file(content: bytes, input_names: Sequence[str], output_names: Sequence[str]) -> bytes:
    """Return the content of an ONNX file with other names, as `with_names`."""
    return with_names(onnx.load_from_string(content), input_names, output_names).SerializeToString()


def outputs_of_file(path: Path) -> list[str]:
    """Return the names of the outputs of an ONNX file."""
    return [value.name for value in onnx.load(path, load_external_data=False).graph.output]


def _inner_names(graph: onnx.GraphProto) -> list[str]:
    """Return the names of all values that nodes of a graph and of the graphs within it compute."""
    within = [inner for node in graph.node for part in node.attribute for inner in (part.g, *part.graphs)]
    return [name for node in graph.node for name in node.output] + [name for g in within for name in _inner_names(g)]


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
