"""Layers of a model that may be treated, and the steps that place int8 tensors around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import fx

from autoprune.errors import PolicyError
from autoprune.records import Policy
from autoprune.structure.capture import Capture
from autoprune.structure.geometry import RECURRENT, Operator
from autoprune.structure.low_rank import factor_names, splittable, weight_name
from autoprune.structure.placement import Kind, Step
from autoprune.structure.tensor_costs import TreatedWeight
from autoprune.treatments import INT8, PRECISIONS, Layer, Treatment

_PRECISIONS = {
    "conv1d": ("fp32", "int8"),
    "conv2d": ("fp32", "int8"),
    "linear": PRECISIONS,
    "lstm": ("fp32", "int8-dynamic"),
    **dict.fromkeys(("conv3d", "gru", "rnn_tanh", "rnn_relu"), ("fp32",)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), ("fp32",)),
}
"""Precisions by operator; those in fp32 alone can have zeros."""


def layers_of(
    operators: Sequence[Operator],
    tensors: Mapping[str, torch.Tensor],
    canonical: Mapping[str, str],
    captures: Collection[Capture] = (),
) -> tuple[Layer, ...]:
    """Return the layers of an evaluation graph.

    Args:
        operators: of the graph, in order.
        tensors: parameters and buffers by name.
        canonical: first name of the tensor behind every name.
        captures: graphs of the model in all modes; they say which weights two factors can replace.
    """
    replaceable = splittable(captures, canonical) if captures else frozenset[str]()
    nodes: dict[tuple[str, ...], list[Operator]] = {}
    for operator in operators:
        weights = tuple(canonical[name] for name in weights_of(operator, tensors))
        if weights:
            nodes.setdefault(weights, []).append(operator)
    return tuple(
        Layer(
            name=weights[0],
            op=of_weights[0].op,
            nodes=tuple(op.node for op in of_weights),
            precisions=_PRECISIONS[of_weights[0].op],
            weights=weights,
            shapes=tuple(tuple(tensors[name].shape) for name in weights),
            magnitudes=partial(_magnitudes, [tensors[name] for name in weights]),
            matrix=(len(tensors[weights[0]]), tensors[weights[0]][0].numel()) if weights[0] in replaceable else (0, 0),
        )
        for weights, of_weights in nodes.items()
        if len({op.op for op in of_weights}) == 1
    )


def _magnitudes(weights: Sequence[torch.Tensor]) -> np.ndarray:
    return np.concatenate([weight.detach().abs().flatten().float().cpu().numpy() for weight in weights])


def weights_of(operator: Operator, tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Return the names of the weights that an operator multiplies with; none for operators that are no layers.

    A recurrent layer has two for each direction; LSTMs with projections have three, and cannot be treated.
    """
    if operator.op not in _PRECISIONS:
        return ()
    recurrent = operator.op in RECURRENT
    dimensions, counts = ((2,), (2, 4)) if recurrent else ((2, 3, 4, 5), (1,))
    weights = tuple(name for name in operator.parameters if tensors[name].dim() in dimensions)
    known = all(isinstance(tensors[name], torch.nn.Parameter) for name in weights)
    return weights if known and len(weights) in counts else ()


def treated_weights(layers: Sequence[Layer], treated: Sequence[str], first: int) -> dict[str, TreatedWeight]:
    """Return the weights of treated layers by their names; columns of rows, from the `first` on, hold treatments."""
    by_name = {layer.name: layer for layer in layers}
    return {
        weight: TreatedWeight(name=weight, layer=by_name[name], column=first + number)
        for number, name in enumerate(treated)
        for weight in (by_name[name].weights if name in by_name else ())
    }


_MOVES = frozenset(
    {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "max_pool1d", "max_pool2d", "flatten", "view", "reshape"}
    | {"_unsafe_view", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "contiguous", "clone", "alias"}
    | {"detach", "dropout", "feature_dropout"}
)
"""Operators that select or move numbers of one input."""

_CLIPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min"})
"""Moves that are computed on the way out of the step before them."""

_JOINS = frozenset({"add", "cat"})


def steps_of(graph: fx.Graph, operators: Sequence[Operator], layers: Sequence[Layer]) -> list[Step]:
    """Return the steps of an evaluation graph, which `Placement` decides about.

    A batch norm that alone reads a convolution is folded into it when the model is exported, so it moves its output.

    Args:
        graph: of the dense model, or of a shrunk one: without the nodes of removed branches, with two layers where
            factors replace a weight.
        operators: of the dense model's graph.
        layers: those that may be treated (`layers_of`). The steps of those that cannot be int8 have their names alone.
    """
    layer_of = {node: layer.name for layer in layers for node in layer.nodes}
    known = {operator.node: operator.op for operator in operators}
    factors = {factor: layer.op for layer in layers if any(layer.matrix) for factor in factor_names(layer.name)}
    int8 = {layer.name for layer in layers if INT8.precision in layer.precisions} | factors.keys()
    steps: dict[str, Step] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            steps[node.name] = Step(name=node.name, kind="input")
        elif node.op == "output":
            for read in node.all_input_nodes:
                steps[f"output {read.name}"] = Step(name=f"output {read.name}", kind="output", inputs=(read.name,))
        elif weight_name(node) in factors:
            steps[node.name] = _step(node, factors[weight_name(node)], weight_name(node), int8, steps)
        elif node.name in known:
            # Where one side of an addition was removed, a copy of the other has its name.
            op = "clone" if node.target == torch.ops.aten.clone.default else known[node.name]
            steps[node.name] = _step(node, op, layer_of.get(node.name, ""), int8, steps)
    return list(steps.values())


def _step(node: fx.Node, op: str, layer: str, int8: Collection[str], before: Mapping[str, Step]) -> Step:
    """Return the step of a node that reads some of the steps `before` it."""
    read = tuple(n.name for n in node.all_input_nodes if n.name in before)
    kind: Kind = "other"
    if layer in int8 and len(read) == 1:
        kind = "layer"
    elif op == "batch_norm" and len(read) == 1:
        kind = "moves" if before[read[0]].kind == "layer" and len(node.all_input_nodes[0].users) == 1 else "other"
    elif op in _MOVES and len(read) == 1:
        kind = "moves"
    elif op in _JOINS and len(read) > 1:
        kind = "join"
    return Step(
        name=node.name,
        kind=kind,
        inputs=read,
        layer=layer if kind == "layer" or layer not in int8 else "",
        fused=kind == "moves" and op in {*_CLIPS, "batch_norm"},
        writes_fp32=kind == "layer" and op == "linear",
    )


def treatment_codes(policies: Sequence[Policy], layers: Sequence[str]) -> np.ndarray:
    """Return the codes of treatments of policies, int64 `[P, L]`, for the names of `L` layers.

    Raises:
        PolicyError: a policy treats another layer.
    """
    codes = np.zeros((len(policies), len(layers)), dtype=np.int64)
    columns = {name: column for column, name in enumerate(layers)}
    for row, policy in zip(codes, policies, strict=True):
        for name, treatment in policy.treatments.items():
            if name not in columns:
                raise PolicyError(f"the policy treats {name!r} ({treatment}); expected one of {list(layers)}")
            row[columns[name]] = treatment.code
    return codes


def policy_of(columns: Sequence[str], row: Sequence[int] | np.ndarray, layers: Collection[str] = ()) -> Policy:
    """Return the policy of one row `[U + L]`, whether its widths are levels of a space or not.

    Args:
        columns: names of the columns: units, then layers.
        row: widths of the units, then codes of the layers' treatments.
        layers: names of the columns that are layers.
    """
    codes = {name: int(code) for name, code in zip(columns, row, strict=True)}
    return Policy(
        space_id="",
        widths={name: code for name, code in codes.items() if name not in layers},
        treatments={name: Treatment.of_code(code) for name, code in codes.items() if name in layers},
    )
