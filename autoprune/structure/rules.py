"""Rules: how labels pass through each ATen operator, as a literal table of one function for each family.

How to add a rule (an operator without one fixes all that it reads, and `Structure.unsupported` lists it):

1. Is an existing family right? Add the operator to `RULES` or `movements.MOVEMENTS`, or all its overloads to `POOLS`,
   `UNCHANGED` or `ELEMENTWISE` in `families`: done. One that works in place has the rule of its element-wise twin.
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
    complex_pairs,
    concatenation,
    glu,
    ignored,
    maximum,
    merged_patches,
    padding,
    patches,
    pointwise,
    pool,
    reduction,
    sampling,
    selection,
    stacking,
    unchanged,
    unpooling,
    within,
)
from autoprune.structure.families import is_elementwise, is_grouped_product, is_pool, is_unchanged
from autoprune.structure.indexed import classes, filling, indexing, intervals, lookup, scattering
from autoprune.structure.labels import Labels, Value
from autoprune.structure.layers import (
    batch_norm,
    convolution,
    embedding,
    embedding_bag,
    group_norm,
    layer_norm,
    linear,
    prelu,
    transposed_convolution,
)
from autoprune.structure.movements import MOVEMENTS, RESHAPES, created, expansion, item, movement, repetition, reshaping
from autoprune.structure.nodes import shape_of
from autoprune.structure.products import (
    attention,
    bilinear,
    distances,
    einsum,
    expert_product,
    matrix_product,
    shifted_product,
    similarity,
)
from autoprune.structure.recurrent import recurrent
from autoprune.structure.recurrent_layers import GATES

aten = torch.ops.aten


def pass_labels(
    graph: fx.Graph,
    labels: Labels,
    parameters: dict[str, Value],
    constants: Mapping[str, torch.Tensor],
    fixed_outputs: Mapping[fx.Node, str] | None = None,
) -> Analysis:
    """Pass labels through a captured graph. Inputs carry no labels, and outputs are fixed.

    Args:
        graph: one mode of a model.
        labels: receives all ties.
        parameters: values of floating-point tensors by state-dict name.
        constants: integer tensors by state-dict name.
        fixed_outputs: nodes of the outputs that keep their channels, and the reason (default: every output).
    """
    state = Analysis(labels, parameters, constants)
    for node in graph.nodes:
        if node.op == "get_attr":
            state.values[node] = parameters.get(str(node.target), Value(shape_of(node)))
        elif node.op == "call_function":
            _apply(state, node)
        elif node.op == "output":
            of_all = dict.fromkeys(node.all_input_nodes, "an output of the model")
            for source, reason in (of_all if fixed_outputs is None else fixed_outputs).items():
                labels.fix_value(state.value(source), reason)
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
        aten.embedding_bag.default: embedding_bag,
        aten.embedding_bag.padding_idx: embedding_bag,
        aten.grid_sampler.default: sampling,
        aten.grid_sampler_2d.default: sampling,
        aten.grid_sampler_3d.default: sampling,
        aten.max_unpool2d.default: unpooling,
        aten.max_unpool3d.default: unpooling,
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
        aten.amax.default: maximum,
        aten.amin.default: maximum,
        aten.max.dim: maximum,
        aten.min.dim: maximum,
        aten.max.default: selection,
        aten.min.default: selection,
        aten.median.default: selection,
        aten.prod.default: selection,
        aten.any.default: selection,
        aten.all.default: selection,
        aten.argmax.default: selection,
        aten.argmin.default: selection,
        aten.sort.default: selection,
        aten.topk.default: selection,
        aten.cumsum.default: selection,
        aten.cumprod.default: selection,
        aten.cummax.default: selection,
        aten.cummin.default: selection,
        aten.logcumsumexp.default: selection,
        aten.logsumexp.default: selection,
        aten._softmax.default: selection,
        aten._log_softmax.default: selection,
        aten._safe_softmax.default: selection,
        aten.prod.dim_int: selection,
        aten.median.dim: selection,
        aten.nanmedian.dim: selection,
        aten.mode.default: selection,
        aten.kthvalue.default: selection,
        aten.aminmax.default: selection,
        aten.sort.stable: selection,
        aten.argsort.default: selection,
        aten.argsort.stable: selection,
        aten.any.dim: selection,
        aten.all.dim: selection,
        aten.count_nonzero.dim_IntList: selection,
        aten.std_mean.correction: reduction,
        aten.std_mean.dim: reduction,
        aten.std.default: reduction,
        aten.var.default: reduction,
        aten.var_mean.dim: reduction,
        aten.var_mean.default: reduction,
        aten.tril.default: within,
        aten.triu.default: within,
        aten.view_as_complex.default: complex_pairs,
        aten.view_as_real.default: complex_pairs,
        aten.index_add.default: scattering,
        aten.index_add_.default: scattering,
        aten.index_copy.default: scattering,
        aten.index_copy_.default: scattering,
        aten.scatter.src: scattering,
        aten.scatter.value: scattering,
        aten.scatter_.src: scattering,
        aten.scatter_.value: scattering,
        aten.scatter_add.default: scattering,
        aten.scatter_add_.default: scattering,
        aten.scatter_reduce.two: scattering,
        aten.scatter_reduce_.two: scattering,
        aten.index_reduce.default: scattering,
        aten.index_reduce_.default: scattering,
        aten.index_fill.int_Scalar: filling,
        aten.index_fill.int_Tensor: filling,
        aten.index_fill_.int_Scalar: filling,
        aten.index_fill_.int_Tensor: filling,
        aten.bucketize.Tensor: intervals,
        aten.one_hot.default: classes,
        aten.bilinear.default: bilinear,
        aten.cosine_similarity.default: similarity,
        aten.pairwise_distance.default: similarity,
        aten.cdist.default: distances,
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
        aten.rand.default: created,
        aten.randn.default: created,
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
    | {
        getattr(aten, f"fft_{inverse}{kind}{dims}").default: within
        for inverse in ("", "i")
        for kind in ("fft", "rfft", "hfft")
        for dims in ("", "2", "n")
    }
    | dict.fromkeys(GATES, recurrent)
    | dict.fromkeys(MOVEMENTS, movement)
    | dict.fromkeys(RESHAPES, reshaping)
)


def rule_for(target: Any) -> Rule | None:
    """Return the rule of an operator, or `None` when there is none."""
    if target in RULES:
        return RULES[target]
    if is_unchanged(target):
        return unchanged
    if is_pool(target):
        return pool
    if is_grouped_product(target):
        return expert_product
    return pointwise if is_elementwise(target) else None
