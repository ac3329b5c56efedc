"""Attention in ONNX for queries with more dimensions than the exporter takes: windows or blocks before the heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

op: Any = opset18  # values of a graph in the making have no types of their own

_RANK = 4


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    rank = len(query.shape)
    if rank <= _RANK or attn_mask is not None or is_causal or enable_gqa:
        options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return aten_scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)
    # Both sides get the root of the scale, as in the exporter's own.
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    factor = op.CastLike(op.Constant(value_float=root), query)
    turned = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    weights = op.Softmax(op.MatMul(op.Mul(query, factor), op.Mul(turned, factor)), axis=-1)
    return op.MatMul(weights, value)


TRANSLATIONS = {torch.ops.aten.scaled_dot_product_attention.default: _attention}
"""What the exporter makes of attention."""
