"""Models that are larger than an ONNX file can be."""

import onnx
import pytest
import torch
from torch import nn

from autoprune.errors import StructureError
from autoprune.onnxgraph.export import export_onnx, serialized


def test_a_model_that_no_file_holds_is_refused_before_it_is_exported(monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", None)
    with pytest.raises(StructureError, match=r"holds at most 2\.13 GB of weights, and this model has 2\.21 GB"):
        export_onnx(nn.Linear(23_500, 23_500, bias=False, device="meta"), (torch.zeros(1, 23_500),))


def test_an_export_that_no_file_holds_is_refused_before_it_is_written():
    weight = onnx.TensorProto(dims=[23_500, 23_500], data_type=onnx.TensorProto.FLOAT)
    model = onnx.ModelProto(graph=onnx.GraphProto(initializer=[weight]))
    with pytest.raises(StructureError, match=r"this model has 2\.21 GB"):
        serialized(model)
    weight.data_type = onnx.TensorProto.FLOAT16
    assert serialized(onnx.ModelProto(graph=onnx.GraphProto(initializer=[weight])))
