"""Attention in ONNX: for any number of dimensions before the heads, and without what its shapes cost at run time.

The exporter takes four dimensions, no windows or blocks before the heads. It turns keys by reading their shape, slicing
it and reshaping twice, which the runtime does again in each call: eight of about thirty small kernels of a branch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

op: Any = opset18  # values of a graph in the making have no types of their own


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
    rank, places = len(query.shape), (query.shape[-2], key.shape[-2])
    known = not is_causal or all(isinstance(size, int) for size in places)
    if enable_gqa or not known or not (attn_mask is None or attn_mask.dtype == query.dtype):
        options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return aten_scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)
    if is_causal:
        later = np.triu(np.full(places, -np.inf, dtype=np.float32), 1)
        attn_mask = op.CastLike(op.Constant(value=numpy_helper.from_array(later)), query)
    # Both sides get the root of the scale, as in the exporter's own.
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    factor = op.CastLike(op.Constant(value_float=root), query)
    turned = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    products = op.MatMul(op.Mul(query, factor), op.Mul(turned, factor))
    products = products if attn_mask is None else op.Add(products, attn_mask)
    return op.MatMul(op.Softmax(products, axis=-1), value)


TRANSLATIONS = {torch.ops.aten.scaled_dot_product_attention.default: _attention}
"""The ONNX translation of attention, for the exporter."""
