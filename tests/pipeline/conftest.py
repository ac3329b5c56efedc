from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import onnx
import pytest
from torch import nn

from autoprune.export import onnx_file
from autoprune.runfolder import write_atomic
from autoprune.structure import GraphModel
from autoprune.training.dense import weights_to_bytes


@pytest.fixture(scope="package", autouse=True)
def exported_once() -> Iterator[None]:
    """Export a model once, however many tests come to the same weights: the exporter takes a second or more."""
    files: dict[object, bytes] = {}
    export = onnx_file.export_onnx

    def remembered(model: nn.Module, inputs: Any, path: Any = None, **options: Any) -> onnx.ModelProto:
        weights = hashlib.sha256(weights_to_bytes(model)).digest()
        if not isinstance(model, GraphModel):  # a graph says what is computed, a class does not
            return export(model, inputs, path, **options)
        graph = str(model.captures[False].graph)
        key = graph, str(model.input_names), weights, *((tuple(x.shape), x.dtype) for x in inputs), str(options)
        if key not in files:
            files[key] = export(model, inputs, **options).SerializeToString()
        write_atomic(path, files[key])
        return onnx.load_model_from_string(files[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "export_onnx", remembered)
        yield
