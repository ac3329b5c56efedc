"""Other names of the inputs and outputs of a file."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoprune.errors import UsageError
from autoprune.onnxgraph.names import with_names


@pytest.fixture
def model() -> onnx.ModelProto:
    """`y` = relu(`a` + weight) and `b` doubled, with free sizes, and an inner value of the name `inner`."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", f"{name}_1"]) for name in "ab"]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "a_1"]),
        helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["batch", "b_1"]),
    ]
    nodes = [
        helper.make_node("Add", ["a", "layer.weight"], ["inner"]),
        helper.make_node("Relu", ["inner"], ["y"]),
        helper.make_node("Add", ["b", "b"], ["twice"]),
    ]
    weight = numpy_helper.from_array(np.full((1, 1), -1, np.float32), "layer.weight")
    graph = helper.make_graph(nodes, "net", inputs, outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("ins", "outs"),
    [(("image", "mask"), ()), ((), ("b2", "inner")), (("b", "a"), ("inner", "y")), (("y", "b"), ("a", "z"))],
)
def test_a_file_with_other_names_computes_the_same(model: onnx.ModelProto, ins: tuple, outs: tuple) -> None:
    renamed = with_names(model, ins, outs)
    onnx.checker.check_model(renamed, full_check=True)
    session = ort.InferenceSession(renamed.SerializeToString(), providers=["CPUExecutionProvider"])
    names = tuple(entry.name for entry in session.get_inputs())
    assert names == (ins or ("a", "b"))
    assert tuple(entry.name for entry in session.get_outputs()) == (outs or ("y", "twice"))
    assert session.get_inputs()[0].shape == ["batch", f"{names[0]}_1"]
    assert session.get_outputs()[0].shape == ["batch", f"{names[0]}_1"]
    a, b = np.float32([[3, 0.5]]), np.float32([[4]])
    first, second = session.run(None, dict(zip(names, (a, b), strict=True)))
    np.testing.assert_array_equal(first, [[2, 0]])
    np.testing.assert_array_equal(second, [[8]])
    assert [value.name for value in model.graph.input] == ["a", "b"]


@pytest.mark.parametrize(
    ("ins", "outs", "reason"),
    [
        (["x"], [], r"the model has 2 inputs \(a, b\); got 1: x"),
        ([], ["p", "q", "r"], r"the model has 2 outputs \(y, twice\); got 3: p, q, r"),
        ("xy", [], r"the model has 2 inputs \(a, b\); got 1: xy"),
        (["x", "x"], [], "names of inputs are not empty and differ from each other; got 'x', 'x'"),
        ([], ["p", " "], "names of outputs are not empty"),
        (["p", "q"], ["q", "r"], "an input and an output have different names; got p, q, q, r"),
        ([], ["layer.weight", "q"], "the model has weights of the name layer.weight: choose another"),
    ],
)
def test_names_that_do_not_fit_are_refused(model: onnx.ModelProto, ins: list, outs: list, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        with_names(model, ins, outs)
