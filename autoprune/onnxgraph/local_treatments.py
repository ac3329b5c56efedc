"""ONNX nodes of layers that are treated alone: they read and write fp32, and need no calibration.

- `int8-dynamic`: DynamicQuantizeLinear, MatMulInteger and the scaling of its sums, which ONNX Runtime fuses into one
  DynamicQuantizeMatMul, together with the addition of a bias behind them. An LSTM becomes DynamicQuantizeLSTM.
- `w8`, `w4`: MatMulNBits of ONNX Runtime, into which it fuses the addition of a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoprune.quantization.arithmetic import DEFAULT_ARITHMETIC, Arithmetic, level_of
from autoprune.quantization.grid import BLOCK, rounded, rounded_blocks, weight_scales

RUNTIME_DOMAIN = "com.microsoft"
"""Domain of the operators that ONNX Runtime alone has."""


@dataclass(frozen=True, kw_only=True)
class LocalNodes:
    """Nodes that take the place of one, and the constants that they read by name."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, np.ndarray]


def local_nodes(
    node: onnx.NodeProto,
    precision: str,
    weight: np.ndarray,
    *,
    stored: str,
    bias: str = "",
    arithmetic: Arithmetic = DEFAULT_ARITHMETIC,
) -> LocalNodes:
    """Return what takes the place of a matrix product.

    Args:
        node: Gemm or MatMul; what it reads first and writes stay.
        precision: one of `WRITERS`.
        weight: `[O, I]`.
        stored: name of the weight in the file; those of the constants begin with it, so that layers share them.
        bias: name of the bias that a Gemm adds, "" without one.
        arithmetic: of the device.
    """
    product = onnx.NodeProto()
    product.CopyFrom(node)
    product.output[0] = f"{node.output[0]}_product" if bias else node.output[0]
    written = WRITERS[precision](product, weight, stored, arithmetic)
    if not bias:
        return written
    addition = helper.make_node("Add", [product.output[0], bias], [node.output[0]], name=f"{node.name}_bias")
    return LocalNodes(nodes=(*written.nodes, addition), constants=written.constants)


def int8_dynamic_lstm(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto], largest_weight: int) -> LocalNodes:
    """Return what takes the place of an LSTM whose weights `[directions, 4 H, C]` are `stored` in the file."""
    given, constants = [*node.input, *[""] * (8 - len(node.input))], {}
    grids = []
    for place in (1, 2):
        weight, name = numpy_helper.to_array(stored[node.input[place]]), node.input[place]
        rows = weight.reshape(-1, weight.shape[-1])
        scales = weight_scales(rows, None, 1.0, largest_weight=largest_weight)
        steps = rounded(rows, scales).reshape(weight.shape).transpose(0, 2, 1)
        given[place], *of_grid = (f"{name}_{part}" for part in ("quantized", "scale", "zero_point"))
        scales = scales.reshape(weight.shape[:2])
        constants |= dict(
            zip(
                (given[place], *of_grid),
                (np.ascontiguousarray(steps), scales, np.zeros_like(scales, np.int8)),
                strict=True,
            )
        )
        grids += of_grid
    lstm = onnx.NodeProto()
    lstm.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if attribute.name != "layout"]  # which that operator lacks
    del lstm.attribute[:]
    lstm.attribute.extend(kept)
    lstm.op_type, lstm.domain, lstm.input[:] = "DynamicQuantizeLSTM", RUNTIME_DOMAIN, [*given, *grids]
    return LocalNodes(nodes=(lstm,), constants=constants)


def _int8_dynamic(node: onnx.NodeProto, weight: np.ndarray, stored: str, arithmetic: Arithmetic) -> LocalNodes:
    scales = weight_scales(weight, None, 1.0, largest_weight=arithmetic.largest_weight)
    steps, scale, zero_point = (f"{stored}_{part}" for part in ("quantized", "scale", "zero_point"))
    # A layer that is called again writes other values.
    read, into = [f"{node.output[0]}_{part}" for part in ("input", "input_scale", "input_zero_point")], node.output[0]
    sums, numbers, scaling = (f"{into}_{part}" for part in ("sums", "numbers", "scaling"))
    nodes = (
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], read, name=f"{node.name}_input"),
        # The fused kernel has the name of the product, by which its time is known.
        helper.make_node("MatMulInteger", [read[0], steps, read[2], zero_point], [sums], name=node.name),
        helper.make_node("Cast", [sums], [numbers], name=numbers, to=TensorProto.FLOAT),
        helper.make_node("Mul", [read[1], scale], [scaling], name=scaling),
        helper.make_node("Mul", [numbers, scaling], [into], name=f"{node.name}_scaled"),
    )
    constants = {
        steps: np.ascontiguousarray(rounded(weight, scales).T),
        scale: scales,
        zero_point: np.zeros_like(scales, np.int8),
    }
    return LocalNodes(nodes=nodes, constants=constants)


def _weight_only(
    precision: str, bits: int, node: onnx.NodeProto, weight: np.ndarray, stored: str, arithmetic: Arithmetic
) -> LocalNodes:
    blocks = rounded_blocks(weight, bits)
    steps = blocks.steps if bits == 8 else blocks.steps[..., 0::2] | blocks.steps[..., 1::2] << 4
    names = [f"{stored}_quantized", f"{stored}_scale"]
    product = helper.make_node(
        "MatMulNBits", [node.input[0], *names], list(node.output), name=node.name, domain=RUNTIME_DOMAIN,
        N=len(weight), K=blocks.inputs, bits=bits, block_size=BLOCK,
        accuracy_level=level_of(precision, arithmetic.accuracy_levels),
    )  # fmt: skip
    return LocalNodes(nodes=(product,), constants={names[0]: steps, names[1]: blocks.scales})


WRITERS: Mapping[str, Callable[[onnx.NodeProto, np.ndarray, str, Arithmetic], LocalNodes]] = {
    "int8-dynamic": _int8_dynamic,
    "w8": partial(_weight_only, "w8", 8),
    "w4": partial(_weight_only, "w4", 4),
}
"""What writes the product of a linear layer, by the precision of its treatment."""
