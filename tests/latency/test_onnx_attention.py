"""Attention over more dimensions than batch, heads, positions and features."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import StructureError
from autoprune.latency.onnx_model import export_onnx


class Windows(nn.Module):
    """Two windows of three positions each, and two heads."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, 2, n // 2, 3, 2, 4).permute(3, 0, 1, 4, 2, 5).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, **self.options)  # pyright: ignore[reportArgumentType]
        return self.out(y.transpose(2, 3).reshape(b, n, 8))


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}])
def test_windows_are_exported(options: dict) -> None:
    torch.manual_seed(0)
    model = Windows(**options).eval()
    session = onnxruntime.InferenceSession(export_onnx(model, (torch.randn(1, 6, 8),)).SerializeToString())
    x = torch.randn(3, 6, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_left_is_one_clear_error() -> None:
    with pytest.raises(StructureError, match="cannot be exported to ONNX: only 4D"):
        export_onnx(Windows(is_causal=True), (torch.randn(1, 6, 8),))
