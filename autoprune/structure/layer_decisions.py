"""Layers of a model that may be treated, and the steps that place int8 tensors around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from autoprune.records import Layer
from autoprune.structure.geometry import Operator
from autoprune.structure.placement import Kind, Step

_PRECISIONS = {
    "conv1d": ("fp32", "int8"),
    "conv2d": ("fp32", "int8"),
    "linear": ("fp32", "int8", "int8-dynamic", "w8", "w4"),
}
"""Precisions by operator."""


def layers_of(
    operators: Sequence[Operator], tensors: Mapping[str, torch.Tensor], canonical: Mapping[str, str]
) -> tuple[Layer, ...]:
    """Return the layers of an evaluation graph.

    Args:
        operators: of the graph, in order.
        tensors: parameters and buffers by name.
        canonical: first name of the tensor behind every name.
    """
    nodes: dict[str, list[Operator]] = {}
    for operator in operators:
        weight = weight_of(operator, tensors)
        if weight is not None:
            nodes.setdefault(canonical[weight], []).append(operator)
    return tuple(
        Layer(
            name=name,
            op=of_weight[0].op,
            nodes=tuple(op.node for op in of_weight),
            precisions=_PRECISIONS[of_weight[0].op],
        )
        for name, of_weight in nodes.items()
        if len({op.op for op in of_weight}) == 1
    )


def weight_of(operator: Operator, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the weight that an operator multiplies with; `None` for operators that are no layers."""
    if operator.op not in _PRECISIONS:
        return None
    weights = [name for name in operator.parameters if tensors[name].dim() > 1]
    return weights[0] if len(weights) == 1 and isinstance(tensors[weights[0]], torch.nn.Parameter) else None


_MOVES = frozenset(
    {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "max_pool1d", "max_pool2d", "flatten", "view", "reshape"}
    | {"_unsafe_view", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "contiguous", "clone", "alias"}
    | {"detach", "dropout", "feature_dropout"}
)
"""Operators that select or move numbers of one input."""

_CLIPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min"})
"""Moves that are computed on the way out of the step before them."""

_JOINS = frozenset({"add", "cat"})


def steps_of(
    operators: Sequence[Operator], layers: Sequence[Layer], inputs: Sequence[str], outputs: Sequence[str]
) -> list[Step]:
    """Return the steps of an evaluation graph, which `Placement` decides about.

    A batch norm that alone reads a convolution is folded into it when the model is exported, so it moves its output.

    Args:
        operators: of the graph, in order.
        layers: those that can be int8 (`layers_of`).
        inputs: names of the nodes of the model's inputs.
        outputs: names of the nodes that the model returns.
    """
    layer_of = {node: layer.name for layer in layers for node in layer.nodes}
    readers = Counter(name for operator in operators for name in operator.inputs) + Counter(outputs)
    known = {*inputs, *(operator.node for operator in operators)}
    steps = [Step(name=name, kind="input") for name in inputs]
    for operator in operators:
        read = tuple(name for name in operator.inputs if name in known)
        kind: Kind = "other"
        if operator.node in layer_of and len(read) == 1:
            kind = "layer"
        elif operator.op == "batch_norm" and len(read) == 1:
            kind = "moves" if read[0] in layer_of and readers[read[0]] == 1 else "other"
        elif operator.op in _MOVES and len(read) == 1:
            kind = "moves"
        elif operator.op in _JOINS and len(read) > 1:
            kind = "join"
        steps.append(
            Step(
                name=operator.node,
                kind=kind,
                inputs=read,
                layer=layer_of[operator.node] if kind == "layer" else "",
                fused=kind == "moves" and operator.op in {*_CLIPS, "batch_norm"},
                writes_fp32=kind == "layer" and operator.op == "linear",
            )
        )
    return [*steps, *(Step(name=f"output {n}", kind="output", inputs=(n,)) for n in outputs if n in known)]
