"""Rules of layers with weights: convolutions, linear layers, norms and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from autoprune.structure.analysis import Analysis, passing
from autoprune.structure.labels import Array, Value
from autoprune.structure.nodes import argument, concrete, shape_of


def convolution(state: Analysis, node: fx.Node) -> Value:
    """Rule of convolutions, `x [N, C, ...]`, `weight [O, C / groups, ...]`: the channels C meet the weight.

    Spatial dimensions are fixed.
    """
    labels, x, weight = state.labels, state.value(node.args[0]), state.value(node.args[1])
    groups = argument(node, "groups")
    if not isinstance(groups, int):
        return _of_examples(state, node, x, weight)
    _fix_spatial(state, x, weight)
    if groups > 1:
        out = _grouped(state, node, x, weight.along(0), (weight.along(1), weight.shape[1]), weight.shape[0])
    else:
        if x.shape[1] > 1:
            labels.equate(x.along(1), weight.along(1), "reads a fixed input")
        out = weight.along(0)
    return _biased(state, node, x, out, 1)


def transposed_convolution(state: Analysis, node: fx.Node) -> Value:
    """Rule of transposed convolutions, `x [N, C, ...]`, `weight [C, O / groups, ...]`."""
    labels, x, weight = state.labels, state.value(node.args[0]), state.value(node.args[1])
    groups = argument(node, "groups")
    if not isinstance(groups, int):
        return _of_examples(state, node, x, weight)
    _fix_spatial(state, x, weight)
    if x.shape[1] > 1:
        labels.equate(x.along(1), weight.along(0), "reads a fixed input")
    out = weight.along(1)
    if groups > 1:
        total = shape_of(node)[1]
        inside = labels.fresh(weight.shape[0] // groups)
        made = labels.fresh(total)
        out = _grouped(state, node, x, [made], ([inside], len(inside)), total, (weight.along(1), weight.shape[1]))
    return _biased(state, node, x, out, 1)


def _of_examples(state: Analysis, node: fx.Node, x: Value, weight: Value) -> Value:
    """Fix what a convolution with one group for each example reads: its weight is computed for each example."""
    for value in (x, weight):
        state.labels.fix_value(value, f"meets a weight of its own for each example ({node.name}, groups = batch)")
    return Value(shape_of(node))


def _fix_spatial(state: Analysis, x: Value, weight: Value) -> None:
    spatial = range(2, len(weight.shape))
    state.labels.fix_value(x, "a spatial dimension of a convolution", spatial)
    state.labels.fix_value(weight, "a kernel size", spatial)


Factor = tuple[Sequence[Array], int]
"""Components of one factor of a channel dimension, and the factor's size."""


def _grouped(
    state: Analysis,
    node: fx.Node,
    x: Value,
    out: Sequence[Array],
    inside: Factor,
    total: int,
    made: Factor | None = None,
) -> list[Array]:
    """Tie the channels of a grouped convolution: input `c == G[g] or I[i]`, output `o == G[g] or Q[q]`.

    Channel `c` is place `i` of group `g`. Factors of size 1 are left out.

    Args:
        state: receives the labels G of the groups.
        node: the convolution.
        x: its input.
        out: components of its output channels.
        inside: the factor I, places inside a group of input channels.
        total: number of output channels.
        made: the factor Q, places inside a group of output channels (default: new labels).
    """
    labels, groups = state.labels, argument(node, "groups")
    group = labels.fresh(groups)
    state.groups[node] = group
    made = made or ([labels.fresh(total // groups)], total // groups)
    inputs = x.along(1)
    factors = [(inside, inputs), (made, out)]
    if not inputs or not out or any(size > 1 and not parts for (parts, size), _ in factors):
        for array in [*inputs, group, *out, *inside[0], *made[0]]:
            labels.fix(array, "meets a fixed input or weight in a grouped convolution")
        return list(out)
    for (parts, size), whole in factors:
        tiled = [np.tile(part, groups) for part in parts] if size > 1 else []
        labels.equate(whole, [np.repeat(group, size), *tiled], "meets a fixed operand in a grouped convolution")
    return list(out)


def _biased(state: Analysis, node: fx.Node, x: Value, out: Sequence[Array], dim: int) -> Value:
    """Return the output of a layer with channels `out` along `dim`, tied to its bias; other dimensions of `x` pass."""
    shape = shape_of(node)
    bias = state.value(argument(node, "bias"))
    if bias.shape and shape[dim] > 1:
        state.labels.equate(bias.along(0), out, "a fixed bias")
    others = [0] if dim == 1 and len(shape) > 2 else [d for d in range(len(shape)) if d != dim]
    return Value(shape, (*Value.of_dims(shape, {dim: out}).components, *passing(x, others)))


def linear(state: Analysis, node: fx.Node) -> Value:
    """Rule of `linear`, `x [..., C]`, `weight [O, C]`: C meets the weight; other dimensions of x pass."""
    x, weight = state.value(node.args[0]), state.value(node.args[1])
    last = len(x.shape) - 1
    if x.shape[last] > 1:
        state.labels.equate(x.along(last), weight.along(1), "reads a fixed input")
    return _biased(state, node, x, weight.along(0), last)


def batch_norm(state: Analysis, node: fx.Node) -> Value:
    """Rule of `batch_norm` and `instance_norm`, `x [N, C, ...]`: C meets weight, bias and running statistics `[C]`."""
    x = state.value(node.args[0])
    for argument_node in node.args[1:5]:
        value = state.value(argument_node)
        if value.shape and x.shape[1] > 1:
            state.labels.equate(value.along(0), x.along(1), "normalises a fixed input")
    return Value(x.shape, x.components)


def layer_norm(state: Analysis, node: fx.Node) -> Value:
    """Rule of `layer_norm` and `rms_norm`: the last dimensions meet the weight; statistics are over living indices."""
    x = state.value(node.args[0])
    lead = len(x.shape) - len(argument(node, "normalized_shape"))
    for source in node.all_input_nodes[1:]:
        weight = state.value(source)
        for dim in range(len(weight.shape)):
            if weight.shape[dim] > 1:
                state.labels.equate(weight.along(dim), x.along(lead + dim), "normalises a fixed input")
    return Value(x.shape, x.components)


def group_norm(state: Analysis, node: fx.Node) -> Value:
    """Rule of `group_norm`, `x [N, C, ...]`: channel `c == G[g] or I[i]`, so that all groups keep one size."""
    labels, x, groups = state.labels, state.value(node.args[0]), argument(node, "num_groups")
    channels, inside = x.along(1), x.shape[1] // groups
    for source in node.all_input_nodes[1:]:
        labels.equate(state.value(source).along(0), channels, "normalises a fixed input")
    if groups > 1 and channels:
        group = labels.fresh(groups)
        state.groups[node] = group
        tiled = [np.tile(labels.fresh(inside), groups)] if inside > 1 else []
        labels.equate(channels, [np.repeat(group, inside), *tiled], "normalises a fixed input")
    return Value(x.shape, x.components)


def prelu(state: Analysis, node: fx.Node) -> Value:
    """Rule of `prelu(x, weight)`: a weight for each channel meets dimension 1."""
    x, weight = state.value(node.args[0]), state.value(node.args[1])
    if weight.shape and weight.shape[0] > 1:
        state.labels.equate(weight.along(0), x.along(1), "meets a fixed operand in prelu")
    return Value(x.shape, x.components)


def embedding(state: Analysis, node: fx.Node) -> Value:
    """Rule of `embedding(weight [V, E], indices)`: the vocabulary V is fixed, E passes."""
    weight, shape = state.value(node.args[0]), shape_of(node)
    state.labels.fix_value(weight, "is looked up by index", [0])
    return Value.of_dims(shape, {len(shape) - 1: weight.along(1)})


def embedding_bag(state: Analysis, node: fx.Node) -> list[Value]:
    """Rule of `embedding_bag(weight [V, E], ...)`: V is fixed, and E passes to the bags `[B, E]`, the first output."""
    weight, outputs = state.value(node.args[0]), [Value(concrete(v.shape)) for v in node.meta["val"]]
    state.labels.fix_value(weight, "is looked up by index", [0])
    outputs[0] = Value.of_dims(outputs[0].shape, {1: weight.along(1)})
    return outputs
