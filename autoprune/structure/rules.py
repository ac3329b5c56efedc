"""Rules: how labels pass through each ATen operator, as a literal table of one function for each family.

How to add a rule (an operator without one fixes all that it reads, and `Structure.unsupported` lists it):

1. Is an existing family right? Add the operator to `RULES`, `UNCHANGED`, `ELEMENTWISE` or `movements.MOVEMENTS`: done.
2. Else write `def my_rule(state: Analysis, node: fx.Node) -> Value` in `elements` (no weights), `layers` (weights),
   `products` or `movements`, and add it to `RULES`. It reads `state.value(node.args[0])`, ties labels with
   `analysis.align` / `tie` or `state.labels.equate` / `fix_value`, and returns the `Value` of the output (a list for
   several outputs). Copy `glu` (ties halves) or `linear` (meets a weight). A raised `ValueError` means "not this case".
3. Are sizes written in the arguments of its node (groups, view sizes)? Add a function to `rewrites.REWRITES`.
   Is it absent whenever an input is? Add the rule to `branches._PASSING`. Does it average? See `references`.
4. Test: add a small net that uses it to `NETS` in `tests/nets.py` (or `FAMILIES` in `tests/structure/family_nets.py`).
   `tests/structure/test_structure.py` then cuts it at random and compares it with the dense net, sizes included.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from autoprune.structure.analysis import Analysis, Rule
from autoprune.structure.elements import (
    concatenation,
    glu,
    ignored,
    indexing,
    lookup,
    merged_patches,
    padding,
    patches,
    pointwise,
    pool,
    reduction,
    selection,
    stacking,
    unchanged,
)
from autoprune.structure.labels import Labels, Value
from autoprune.structure.layers import (
    batch_norm,
    convolution,
    embedding,
    group_norm,
    layer_norm,
    linear,
    prelu,
    transposed_convolution,
)
from autoprune.structure.movements import MOVEMENTS, RESHAPES, created, expansion, item, movement, repetition, reshaping
from autoprune.structure.nodes import shape_of
from autoprune.structure.products import attention, einsum, matrix_product, shifted_product
from autoprune.structure.recurrent import recurrent
from autoprune.structure.recurrent_layers import GATES

aten = torch.ops.aten


def pass_labels(
    graph: fx.Graph, labels: Labels, parameters: dict[str, Value], constants: Mapping[str, torch.Tensor]
) -> Analysis:
    """Pass labels through a captured graph. Inputs carry no labels, and outputs are fixed.

    Args:
        graph: one mode of a model.
        labels: receives all ties.
        parameters: values of floating-point tensors by state-dict name.
        constants: integer tensors by state-dict name.
    """
    state = Analysis(labels, parameters, constants)
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
    """Apply the rule of a node's operator; without one, fix all that the node reads."""
    rule = rule_for(node.target)
    if rule is not None:
        try:
            state.values[node] = rule(state, node)
            return
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            state.values.pop(node, None)  # the rule does not know this case; its ties so far only constrain more
    read = [value for source in node.all_input_nodes for value in state.every_value(source)]
    touched = any(state.of_parameters(value) for value in read)
    for value in read:
        state.labels.fix_value(value, f"read by {node.target}, which has no rule{' for this case' if rule else ''}")
    if touched:
        state.unsupported.setdefault(str(node.target), []).append(node.name)


RULES: dict[Any, Rule] = (
    {
        aten.conv1d.default: convolution,
        aten.conv2d.default: convolution,
        aten.conv3d.default: convolution,
        aten.conv1d.padding: convolution,
        aten.conv2d.padding: convolution,
        aten.conv3d.padding: convolution,
        aten.conv_transpose1d.default: transposed_convolution,
        aten.conv_transpose2d.input: transposed_convolution,
        aten.conv_transpose3d.input: transposed_convolution,
        aten.linear.default: linear,
        aten.batch_norm.default: batch_norm,
        aten.instance_norm.default: batch_norm,
        aten.layer_norm.default: layer_norm,
        aten.rms_norm.default: layer_norm,
        aten.group_norm.default: group_norm,
        aten.prelu.default: prelu,
        aten.embedding.default: embedding,
        aten.max_pool1d.default: pool,
        aten.max_pool2d.default: pool,
        aten.max_pool3d.default: pool,
        aten.max_pool2d_with_indices.default: pool,
        aten.avg_pool1d.default: pool,
        aten.avg_pool2d.default: pool,
        aten.avg_pool3d.default: pool,
        aten.adaptive_avg_pool1d.default: pool,
        aten.adaptive_avg_pool2d.default: pool,
        aten.adaptive_avg_pool3d.default: pool,
        aten.adaptive_max_pool2d.default: pool,
        aten.upsample_nearest1d.vec: pool,
        aten.upsample_nearest2d.vec: pool,
        aten.upsample_bilinear2d.vec: pool,
        aten.upsample_bicubic2d.vec: pool,
        aten.upsample_linear1d.vec: pool,
        aten._upsample_bicubic2d_aa.vec: pool,
        aten._upsample_bilinear2d_aa.vec: pool,
        aten.im2col.default: patches,
        aten.col2im.default: merged_patches,
        aten.matmul.default: matrix_product,
        aten.mm.default: matrix_product,
        aten.bmm.default: matrix_product,
        aten.addmm.default: shifted_product,
        aten.baddbmm.default: shifted_product,
        aten.einsum.default: einsum,
        aten.scaled_dot_product_attention.default: attention,
        aten.mean.dim: reduction,
        aten.mean.default: reduction,
        aten.sum.dim_IntList: reduction,
        aten.sum.default: reduction,
        aten.var.correction: reduction,
        aten.var.dim: reduction,
        aten.std.correction: reduction,
        aten.std.dim: reduction,
        aten.var_mean.correction: reduction,
        aten.linalg_vector_norm.default: reduction,
        aten.norm.ScalarOpt_dim: reduction,
        aten.softmax.int: selection,
        aten.log_softmax.int: selection,
        aten.amax.default: selection,
        aten.amin.default: selection,
        aten.max.dim: selection,
        aten.min.dim: selection,
        aten.argmax.default: selection,
        aten.argmin.default: selection,
        aten.sort.default: selection,
        aten.topk.default: selection,
        aten.cumsum.default: selection,
        aten.logsumexp.default: selection,
        aten.cat.default: concatenation,
        aten.stack.default: stacking,
        aten.glu.default: glu,
        aten.pad.default: padding,
        aten.constant_pad_nd.default: padding,
        aten.index.Tensor: indexing,
        aten.index_select.default: lookup,
        aten.gather.default: lookup,
        aten.expand.default: expansion,
        aten.repeat.default: repetition,
        aten.zeros.default: created,
        aten.ones.default: created,
        aten.full.default: created,
        aten.empty.memory_format: created,
        aten.new_zeros.default: created,
        aten.new_ones.default: created,
        aten.new_full.default: created,
        aten.new_empty.default: created,
        aten.expand_as.default: pointwise,
        aten._weight_norm.default: pointwise,
        aten.sym_size.int: ignored,
        aten._assert_tensor_metadata.default: ignored,
        operator.getitem: item,
    }
    | dict.fromkeys(GATES, recurrent)
    | dict.fromkeys(MOVEMENTS, movement)
    | dict.fromkeys(RESHAPES, reshaping)
)

UNCHANGED = {
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten._to_copy.default, aten.type_as.default,
    aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.detach_.default,
    aten.lift_fresh_copy.default, aten.zero_.default, aten.fill_.Scalar, aten.zeros_like.default,
    aten.ones_like.default, aten.full_like.default, aten.empty_like.default, aten.view.dtype,
    aten.bernoulli_.float,
}  # fmt: skip
"""Operators whose output has the shape and the labels of their first operand."""

ELEMENTWISE = {
    aten.relu6_.default, aten.log_sigmoid.default, aten.hardswish.default, aten.hardswish_.default,
    aten.copy_.default, aten.where.ScalarOther, aten.where.ScalarSelf, aten.softplus.default, aten.selu.default,
    aten.silu.default, aten.mish.default, aten.gelu.default, aten.masked_fill.Scalar, aten.masked_fill_.Scalar,
    aten.masked_fill.Tensor, aten.relu6.default, aten.div.Tensor_mode,
}  # fmt: skip
"""Operators that are element-wise in effect, though they lack PyTorch's tag `pointwise`."""


def rule_for(target: Any) -> Rule | None:
    """Return the rule of an operator, or `None` when there is none."""
    if target in RULES:
        return RULES[target]
    if target in UNCHANGED:
        return unchanged
    is_pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return pointwise if is_pointwise or target in ELEMENTWISE else None
