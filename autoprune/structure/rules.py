"""How labels pass through each ATen operator: one function per family, in a literal table.

A rule receives the analysis state, the node and the values of its tensor arguments, ties labels, and returns the value
of its output. An operator without a rule fixes the labels of its inputs and is listed by name.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from autoprune.structure.analysis import Analysis, Rule
from autoprune.structure.capture import concrete, shape_of
from autoprune.structure.labels import Array, Labels, Value
from autoprune.structure.movements import MOVEMENTS, item, movement
from autoprune.structure.recurrent import created, recurrent
from autoprune.structure.recurrent_layers import CREATORS, GATES

aten = torch.ops.aten


def analyse(graph: fx.Graph, labels: Labels, parameters: dict[str, Value]) -> Analysis:
    """Pass labels through a graph. Inputs carry none, outputs are fixed; `parameters` holds the values by name."""
    state = Analysis(labels, parameters)
    for node in graph.nodes:
        if node.op == "get_attr":
            state.values[node] = parameters.get(str(node.target), Value(shape_of(node)))
        elif node.op == "call_function":
            _apply(state, node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                labels.fix_value(state.value(source), "an output of the model")
    return state


def _apply(state: Analysis, node: fx.Node) -> None:
    rule = rule_for(node.target)
    if rule is not None:
        state.values[node] = rule(state, node)
        return
    touched = [n for n in node.all_input_nodes if state.value(n).components]
    for source in touched:
        state.labels.fix_value(state.value(source), f"read by {node.target}, which has no rule")
    if touched:
        state.unsupported.setdefault(str(node.target), []).append(node.name)


def _argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _passing(value: Value, dims: Sequence[int]) -> tuple[Array, ...]:
    """Components of the dimensions `dims`, for an output of the same rank and the same sizes there."""
    return tuple(c for c in value.components if any(c.shape[d] > 1 for d in dims))


def convolution(state: Analysis, node: fx.Node) -> Value:
    """`x [N, C, ...]`, `weight [O, C / groups, ...]`: C meets the weight; spatial dimensions are fixed."""
    labels, x, weight = state.labels, state.value(node.args[0]), state.value(node.args[1])
    groups = int(_argument(node, 6, "groups", 1))
    spatial = range(2, len(weight.shape))
    labels.fix_value(x, "a spatial dimension of a convolution", [0, *spatial])
    labels.fix_value(weight, "a kernel size", spatial)
    if groups == 1:
        if x.shape[1] > 1:
            labels.equate(x.along(1), weight.along(1), "reads a fixed input")
        out = weight.along(0)
    else:
        out = _grouped(state, node, x, weight, groups)
    shape = shape_of(node)
    bias = state.value(_argument(node, 2, "bias"))
    if bias.shape and shape[1] > 1:
        labels.equate(bias.along(0), out, "a fixed bias")
    return Value.of_dims(shape, {1: out})


def _grouped(state: Analysis, node: fx.Node, x: Value, weight: Value, groups: int) -> list[Array]:
    """Input `c == G[g] or I[i]`, weight dimension 1 `= I`, output `o == G[g] or Q[q]`; no factors of size 1."""
    labels = state.labels
    per_in, per_out = weight.shape[1], weight.shape[0] // groups
    group = labels.fresh(groups)
    state.groups[node] = group
    inputs = x.along(1)
    if len(inputs) != 1 or not weight.along(0) or (per_in > 1 and not weight.along(1)):
        for array in [*inputs, group, *weight.along(0), *weight.along(1)]:
            labels.fix(array, "meets a fixed input or weight in a grouped convolution")
        return weight.along(0)
    causes = [np.repeat(group, per_in)]
    if per_in > 1:
        causes.append(np.tile(weight.along(1)[0], groups))
    labels.either(inputs[0], causes)
    out = weight.along(0)[0]
    causes = [np.repeat(group, per_out)]
    if per_out > 1:
        causes.append(np.tile(labels.fresh(per_out), groups))
    labels.either(out, causes)
    return [out]


def linear(state: Analysis, node: fx.Node) -> Value:
    """`x [..., C]`, `weight [O, C]`: C meets the weight's dimension 1; the other dimensions of x pass."""
    labels, x, weight = state.labels, state.value(node.args[0]), state.value(node.args[1])
    last = len(x.shape) - 1
    if x.shape[last] > 1:
        labels.equate(x.along(last), weight.along(1), "reads a fixed input")
    out = weight.along(0)
    bias = state.value(_argument(node, 2, "bias"))
    if bias.shape and weight.shape[0] > 1:
        labels.equate(bias.along(0), out, "a fixed bias")
    shape = shape_of(node)
    result = Value.of_dims(shape, {last: out})
    return Value(shape, result.components + _passing(x, range(last)))


def batch_norm(state: Analysis, node: fx.Node) -> Value:
    """`x [N, C, ...]` with weight, bias and running statistics `[C]`."""
    labels, x = state.labels, state.value(node.args[0])
    labels.fix_value(x, "statistics are taken over it", [d for d in range(len(x.shape)) if d != 1])
    for argument in node.args[1:5]:
        value = state.value(argument)
        if value.shape and x.shape[1] > 1:
            labels.equate(value.along(0), x.along(1), "normalises a fixed input")
    return Value(x.shape, x.components)


def pool(state: Analysis, node: fx.Node) -> Value:
    """Pooling over the trailing dimensions; channels pass, labelled spatial dimensions are fixed."""
    x, shape = state.value(node.args[0]), shape_of(node)
    state.labels.fix_value(x, "a spatial dimension of a pooling", range(2, len(shape)))
    return Value(shape, _passing(x, (0, 1)))


def reduction(state: Analysis, node: fx.Node) -> Value:
    """Mean or sum over dimensions; a labelled dimension that is reduced is fixed."""
    x, shape = state.value(node.args[0]), shape_of(node)
    dims = _argument(node, 1, "dim")
    listed = range(len(x.shape)) if not dims and dims != 0 else ([dims] if isinstance(dims, int) else dims)
    reduced = {d % len(x.shape) for d in listed} if x.shape else set()
    state.labels.fix_value(x, "is averaged or summed away", reduced)
    keepdim = len(shape) == len(x.shape)
    parts = []
    for component in x.components:
        if all(component.shape[d] == 1 for d in reduced):
            parts.append(component if keepdim else component.squeeze(tuple(reduced)))
    return Value(shape, tuple(parts))


def pointwise(state: Analysis, node: fx.Node) -> Value:
    """Element-wise with broadcasting: operands are aligned at the right, and labels tied along every dimension."""
    operands = [state.value(n) for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    return align(state.labels, operands, shape_of(node), str(node.target))


def align(labels: Labels, operands: Sequence[Value], shape: tuple[int, ...], name: str) -> Value:
    """Tie operands of one broadcast along each output dimension; an operand of size 1 there is not involved."""
    result: dict[int, list[Array]] = {}
    for dim in range(len(shape)):
        sides = []
        for operand in operands:
            own = dim - (len(shape) - len(operand.shape))
            if own >= 0 and operand.shape[own] > 1:
                sides.append(operand.along(own))
        if not any(sides):
            continue
        for side in sides[1:]:
            labels.equate(sides[0], side, f"meets a fixed operand in {name}")
        result[dim] = max(sides, key=len) if all(sides) else []
    return Value.of_dims(shape, result)


def concatenation(state: Analysis, node: fx.Node) -> Value:
    """Join the label arrays along one dimension; the other dimensions are aligned."""
    labels, shape = state.labels, shape_of(node)
    operands = [state.value(a) for a in node.args[0]]  # type: ignore[union-attr]
    dim = int(_argument(node, 1, "dim", 0)) % len(shape)
    joined = []
    for operand in operands:
        parts = operand.along(dim)
        if operand.shape[dim] == 1 or not parts:
            joined.append(np.zeros(operand.shape[dim], dtype=np.int64))
        elif len(parts) == 1:
            joined.append(parts[0])
        else:
            whole = labels.fresh(operand.shape[dim])
            labels.either(whole, parts)
            joined.append(whole)
    others = [Value(o.shape, tuple(c for c in o.components if c.shape[dim] == 1)) for o in operands]
    aligned = align(labels, [_without(o, dim) for o in others], _hide(shape, dim), "cat")
    return Value(shape, aligned.components + Value.of_dims(shape, {dim: [np.concatenate(joined)]}).components)


def _hide(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], 1, *shape[dim + 1 :])


def _without(value: Value, dim: int) -> Value:
    return Value(_hide(value.shape, dim), value.components)


def padding(state: Analysis, node: fx.Node) -> Value:
    """Padding of trailing dimensions; labelled dimensions that are padded are fixed."""
    x, shape = state.value(node.args[0]), shape_of(node)
    amounts = concrete(node.args[1])
    padded = [len(shape) - 1 - k // 2 for k in range(len(amounts)) if amounts[k]]  # type: ignore[arg-type]
    state.labels.fix_value(x, "is padded", padded)
    return Value(shape, tuple(c for c in x.components if all(c.shape[d] == 1 for d in padded)))


def ignored(state: Analysis, node: fx.Node) -> None:
    """Sizes and assertions: no tensor comes out."""


def prelu(state: Analysis, node: fx.Node) -> Value:
    """`prelu(x, weight)`: a weight per channel aligns with dimension 1."""
    x, weight = state.value(node.args[0]), state.value(node.args[1])
    if weight.shape and weight.shape[0] > 1:
        state.labels.equate(weight.along(0), x.along(1), "meets a fixed operand in prelu")
    return Value(x.shape, x.components)


RULES: dict[Any, Rule] = {
    aten.conv1d.default: convolution,
    aten.conv2d.default: convolution,
    aten.conv2d.padding: convolution,
    aten.conv1d.padding: convolution,
    aten.linear.default: linear,
    aten.batch_norm.default: batch_norm,
    aten.max_pool2d.default: pool,
    aten.max_pool1d.default: pool,
    aten.avg_pool2d.default: pool,
    aten.avg_pool1d.default: pool,
    aten.adaptive_avg_pool2d.default: pool,
    aten.adaptive_avg_pool1d.default: pool,
    aten.prelu.default: prelu,
    aten.mean.dim: reduction,
    aten.sum.dim_IntList: reduction,
    aten.cat.default: concatenation,
    aten.pad.default: padding,
    aten.constant_pad_nd.default: padding,
    aten.sym_size.int: ignored,
    aten._assert_tensor_metadata.default: ignored,
    operator.getitem: item,
} | dict.fromkeys(MOVEMENTS, movement) | dict.fromkeys(GATES, recurrent) | dict.fromkeys(CREATORS, created)  # fmt: skip

# Element-wise in effect, though they do not carry the tag.
ELEMENTWISE = {
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.to.dtype, aten.to.dtype_layout,
    aten.contiguous.default, aten.alias.default, aten.relu6_.default, aten.alpha_dropout.default,
    aten.log_sigmoid.default, aten.type_as.default, aten.detach.default, aten.hardswish.default,
    aten.hardswish_.default, aten.to.device, aten.zeros_like.default, aten.ones_like.default,
}  # fmt: skip


def rule_for(target: Any) -> Rule | None:
    """The rule of an operator, or `None` when there is none."""
    if target in RULES:
        return RULES[target]
    is_pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return pointwise if is_pointwise or target in ELEMENTWISE else None
