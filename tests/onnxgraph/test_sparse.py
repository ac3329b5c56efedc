"""Sparse initializers of ONNX files: the same outputs in fewer bytes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from autoprune.onnxgraph.sparse import with_sparse_initializers


def test_weights_with_many_zeros_are_sparse_and_outputs_stay() -> None:
    generator = np.random.default_rng(0)
    few = (generator.normal(size=(32, 32)) * (generator.random((32, 32)) < 0.1)).astype(np.float32)
    weights = {"few": few, "many": generator.normal(size=(32, 8)).astype(np.float32), "none": np.zeros(8, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "few"], ["h"]),
        helper.make_node("MatMul", ["h", "many"], ["s"]),
        helper.make_node("Add", ["s", "none"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content = with_sparse_initializers(model.SerializeToString())
    sparse = onnx.load_from_string(content)
    onnx.checker.check_model(sparse)
    assert [each.values.name for each in sparse.graph.sparse_initializer] == ["few"]
    assert {each.name for each in sparse.graph.initializer} == {"many", "none"}
    assert len(content) < len(model.SerializeToString())
    feed = {"x": generator.normal(size=(2, 32)).astype(np.float32)}
    outputs = [
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for each in (model, sparse)
    ]
    np.testing.assert_array_equal(*outputs)
