"""Recurrent layers in ONNX: one LSTM, GRU or RNN operator for each layer, with weights that can be resized.

The exporter alone unrolls `nn.RNN` over its steps, and puts a dozen operators around the others to work out shapes.
Weights are stored stacked by direction and with the gates in ONNX order, under the name of the first parameter they are
made of and a suffix. Initial states of zeros are left out: they are the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxscript import opset18
from torch import nn

from autoprune.errors import StructureError
from autoprune.onnxgraph.branches import serving
from autoprune.structure.whole_layers import STAND_INS

aten = torch.ops.aten
op: Any = opset18  # values of a graph in the making have no types of their own

GATES = "_gates"
"""How the names of stacked weights end."""

KINDS = frozenset({"LSTM", "GRU", "RNN"})
_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Position in PyTorch of every gate of ONNX: i f g o against i o f c, r z n against z r h."""

_PASSING = frozenset({"Identity", "Cast", "Expand", "Slice", "Transpose"})


def _translation(kind: str, attributes: Mapping[str, Any]) -> Callable[..., Any]:
    def translate(
        x: Any, states: Any, weights: Any, biased: bool, layers: int, dropout: float, training: bool,
        bidirectional: bool, batch_first: bool,
    ) -> Any:  # fmt: skip
        given = list(states) if kind == "LSTM" else [states]
        directions, each = 2 if bidirectional else 1, len(weights) // layers
        if each > directions * (4 if biased else 2):
            raise StructureError("ONNX has no recurrent layers with projections (proj_size)")
        direction = "bidirectional" if bidirectional else "forward"
        options = {name: [value] * directions if name == "activations" else value for name, value in attributes.items()}
        x = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        finals: list[list[Any]] = [[] for _ in given]
        for layer in range(layers):
            mine = weights[layer * each : (layer + 1) * each]
            own = [None if _is_zero(s) else _part(s, layer, directions, layers) for s in given]
            outputs = getattr(op, kind)(
                x, *_stacked(kind, mine, directions, biased), None, *own,
                hidden_size=int(mine[1].shape[1]), direction=direction, **options,
            )  # fmt: skip
            x = _joined(outputs[0], directions)
            for final, one in zip(finals, outputs[1:], strict=True):
                final.append(one)
        last = [op.Concat(*final, axis=0) if layers > 1 else final[0] for final in finals]
        return (op.Transpose(x, perm=[1, 0, 2]) if batch_first else x, *last)

    return translate


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: _translation("LSTM", {}),
    aten.gru.input: _translation("GRU", {"linear_before_reset": 1}),
    aten.rnn_tanh.input: _translation("RNN", {"activations": "Tanh"}),
    aten.rnn_relu.input: _translation("RNN", {"activations": "Relu"}),
}
TRANSLATIONS |= {stand_in: TRANSLATIONS[layer] for stand_in, layer in STAND_INS.items()}
"""ONNX translations of recurrent operators, for the exporter."""


def _stacked(kind: str, weights: Any, directions: int, biased: bool) -> list[Any]:
    """Weights of inputs and of states `[directions, gates * H, C]`, and biases `[directions, 2 gates * H]`."""
    each, hidden = len(weights) // directions, int(weights[1].shape[1])
    order = np.concatenate([np.arange(hidden) + gate * hidden for gate in _ORDER[kind]])
    rows = op.Constant(value=numpy_helper.from_array(order))
    ordered = [op.Gather(weight, rows, axis=0) for weight in weights]
    parts = [ordered[d * each : (d + 1) * each] for d in range(directions)]
    groups = [[p[0] for p in parts], [p[1] for p in parts]]
    groups += [[op.Concat(p[2], p[3], axis=0) for p in parts]] if biased else []
    stacks = []
    for group, first in zip(groups, (0, 1, 2), strict=False):
        raised = [op.Unsqueeze(part, op.Constant(value_ints=[0])) for part in group]
        stacked = op.Concat(*raised, axis=0) if directions > 1 else raised[0]
        # A layer that is used twice is stacked twice, and names are unique in a graph.
        stacked.name = f"{weights[first].name}{GATES}{id(stacked)}"
        stacks.append(stacked)
    return stacks if biased else [*stacks, None]


def _part(state: Any, layer: int, directions: int, layers: int) -> Any:
    if layers == 1:
        return state
    start, end = layer * directions, (layer + 1) * directions
    ends = [op.Constant(value_ints=[value]) for value in (start, end, 0)]
    return op.Slice(state, *ends)


def _joined(outputs: Any, directions: int) -> Any:
    """`[T, directions, N, H]` as `[T, N, directions * H]`."""
    if directions == 1:
        return op.Squeeze(outputs, op.Constant(value_ints=[1]))
    swapped = op.Transpose(outputs, perm=[0, 2, 1, 3])
    return op.Reshape(swapped, op.Constant(value_ints=[0, 0, -1]))


def _is_zero(state: Any) -> bool:
    """Whether a value of the graph in the making is certainly zero."""
    maker: Any = state.producer()
    while maker is not None and maker.op_type in _PASSING:
        state = maker.inputs[0]
        maker = state.producer()
    if maker is not None and maker.op_type == "Constant" and "value" in maker.attributes:
        value = maker.attributes["value"].value
    else:
        value = state.const_value
    return value is not None and not np.any(value.numpy())


def name_stacked(graph: onnx.GraphProto, model: nn.Module) -> None:
    """Make initializers of all stacked weights, named by the state-dict name of the parameter they start with."""
    nodes = [node for node in graph.node if node.op_type in KINDS]
    if not nodes:
        return
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}

    def value(name: str) -> np.ndarray:
        if name not in weights:
            maker = producers[name]
            outputs: Any = ReferenceEvaluator(maker).run(None, {n: value(n) for n in maker.input})
            weights[name] = outputs[0]
        return weights[name]

    names = {f"p_{n.replace('.', '_')}": n for n, _ in model.named_parameters(remove_duplicate=False)}
    kept = {initializer.name for initializer in graph.initializer}
    for node in nodes:
        for place, name in enumerate(node.input[1:4], start=1):
            if name:
                exported = name.rpartition(GATES)[0]
                node.input[place] = names.get(exported, exported) + GATES
                if node.input[place] not in kept:
                    graph.initializer.append(numpy_helper.from_array(value(name), node.input[place]))
                    kept.add(node.input[place])
    left = serving(list(graph.node), {entry.name for entry in graph.output})
    read = {name for node in left for name in node.input}
    initializers = [initializer for initializer in graph.initializer if initializer.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(left)
    graph.initializer.extend(initializers)


def set_hidden_sizes(graph: onnx.GraphProto, weights: Mapping[str, np.ndarray]) -> None:
    """Adapt recurrent operators to the sizes of their `weights`."""
    for node in graph.node:
        if node.op_type in KINDS:
            for attribute in node.attribute:
                if attribute.name == "hidden_size":
                    attribute.i = weights[node.input[2]].shape[2]
