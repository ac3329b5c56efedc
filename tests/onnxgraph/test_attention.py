"""Attention over any number of dimensions before the heads, with masks."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import StructureError
from autoprune.onnxgraph.export import export_onnx


class Attention(nn.Module):
    """Two heads over six positions, in windows of equal length if there is more than one."""

    def __init__(self, windows: int, **options: object) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.before = (windows,) if windows > 1 else ()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        parts = self.qkv(x).reshape(b, *self.before, -1, 3, 2, 4).movedim(-3, 0).transpose(-3, -2)
        q, k, v = parts.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, **self.options)  # pyright: ignore[reportArgumentType]
        return self.out(y.transpose(-3, -2).reshape(b, n, 8))


def exported(model: nn.Module) -> onnx.ModelProto:
    return export_onnx(model.eval(), (torch.randn(1, 6, 8),))


def difference(model: nn.Module, onnx_model: onnx.ModelProto) -> float:
    session = onnxruntime.InferenceSession(onnx_model.SerializeToString())
    x = torch.randn(3, 6, 8)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = model(x).detach().numpy()
    return float(np.abs(outputs - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": torch.tensor([0.0, -9.0, 1.0]).repeat(2)}],
    ids=["plain", "scale", "causal", "mask"],
)
def test_attention_is_exported_without_reading_shapes(windows: int, options: dict) -> None:
    torch.manual_seed(0)
    if "attn_mask" in options:
        options = {"attn_mask": options["attn_mask"][None, : 6 // windows]}
    model = Attention(windows, **options)
    onnx_model = exported(model)
    assert difference(model, onnx_model) < 1e-6
    assert not {"Shape", "Concat"} & {node.op_type for node in onnx_model.graph.node}


def test_a_mask_of_truth_values_is_the_exporters_business() -> None:
    torch.manual_seed(0)
    model = Attention(1, attn_mask=torch.ones(6, 6, dtype=torch.bool).tril())
    assert difference(model, exported(model)) < 1e-6


def test_what_is_left_is_one_clear_error() -> None:
    with pytest.raises(StructureError, match="cannot be exported to ONNX: only 4D"):
        exported(Attention(2, attn_mask=torch.ones(3, 3, dtype=torch.bool).tril()))
