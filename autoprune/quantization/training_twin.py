"""The twin of a model for fine-tuning: it trains the model's own weights in fp32 through the rounding of int8 layers.

Gradients pass straight through: the weights that are stored stay in fp32, and see in every step what rounding makes of
them. Scales are those of the moment, of each filter and each batch; the deployed model is calibrated afterwards.

A filter is rounded before its batch norm, which takes the statistics of the batch: the grid of a filter has the size
of its largest weight, so that rounding before or after the multiplication with the norm's factor is the same.

Source: straight-through gradients, Bengio et al. 2013, https://arxiv.org/abs/1308.3432.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from autoprune.quantization.arithmetic import DEFAULT_ARITHMETIC, Arithmetic, level_of
from autoprune.quantization.grid import LARGEST_WEIGHT, LEVELS, SMALLEST_SCALE
from autoprune.quantization.local_layers import local_linear
from autoprune.structure import GraphModel, module_tensors
from autoprune.structure.capture import Capture
from autoprune.structure.placement import Placement
from autoprune.treatments import Treatment

aten = torch.ops.aten

_COARSE = {"w4": 4}
"""Bits of precisions that are rounded by moments at once and trained through; finer ones lose nothing by rounding."""


def coarse_bits(treatments: Mapping[str, Treatment]) -> dict[str, int]:
    """Return the bits of the weights of layers whose steps are coarse, by their names."""
    given = {name: _COARSE.get(treatment.precision) for name, treatment in treatments.items()}
    return {name: bits for name, bits in given.items() if bits is not None}


def training_twin(
    model: GraphModel,
    placement: Placement,
    int8: Collection[str],
    local: Mapping[str, Treatment],
    arithmetic: Arithmetic = DEFAULT_ARITHMETIC,
) -> GraphModel:
    """Return a twin that shares parameters and buffers with a model, in the mode of the model.

    Args:
        model: in fp32.
        placement: of its evaluation graph; nodes of the training graph have the same names.
        int8: names of the int8 layers.
        local: treatments of the layers that are treated alone.
        arithmetic: of the device.
    """
    kinds = {node.name: node.target for node in model.captures[False].graph.nodes}
    rounded = {step for tensor in placement.int8_tensors(int8) for step in placement.quantized_at(tensor)}
    layers = {name: step.layer for name, step in placement.steps.items() if step.kind == "layer"}

    def with_rounding(capture: Capture) -> Capture:
        copied, new = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in capture.graph.nodes:
            new[node] = copied.node_copy(node, lambda n: new[n])
            if kinds.get(node.name) != node.target:
                continue
            layer = layers.get(node.name, "")
            if layer in int8:
                _round_weight(new[node], arithmetic.largest_weight)
            elif layer in local and node.target is aten.linear.default:
                new[node].target = local_linear
                precision = local[layer].precision
                level = level_of(precision, arithmetic.accuracy_levels)
                new[node].args = (*(*new[node].args, None)[:3], precision, level, arithmetic.largest_weight)
            if node.name in rounded:
                new[node] = copied.call_function(round_tensor, (new[node],))
        return replace(capture, graph=copied)

    captures = {mode: with_rounding(capture) for mode, capture in model.captures.items()}
    tensors = module_tensors(model)
    return GraphModel(captures, tensors, set(model.state_dict())).train(model.training)


def _round_weight(layer: fx.Node, largest_weight: int) -> None:
    """Let the node of a layer read its weight in the int8 grid."""
    x, weight, *rest = layer.args
    with layer.graph.inserting_before(layer):
        layer.args = (x, layer.graph.call_function(round_filters, (weight, largest_weight)), *rest)


class _Rounding(torch.autograd.Function):
    """Rounds to multiples of a scale; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        del ctx
        return values.div(scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        del ctx
        return gradient, None


def round_tensor(values: Tensor) -> Tensor:
    """Return values in the grid of 8 bits that their own range and 0 span."""
    low, high = torch.aminmax(values.detach())
    scale = (high.clamp(min=0) - low.clamp(max=0)) / LEVELS
    return _Rounding.apply(values, scale.clamp(min=SMALLEST_SCALE))


def round_filters(weight: Tensor, largest_weight: int = LARGEST_WEIGHT) -> Tensor:
    """Return a weight `[O, ...]` in the grid of its output channels, whose outermost step is `largest_weight`."""
    largest = weight.detach().abs().amax(tuple(range(1, weight.dim())), keepdim=True)
    return _Rounding.apply(weight, (largest / largest_weight).clamp(min=SMALLEST_SCALE))
