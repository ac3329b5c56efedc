"""Models without branches are what the shrunk models export to."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from autoprune.device.timing import open_session
from autoprune.errors import LatencyError
from autoprune.onnxgraph.branches import remove_branches
from autoprune.onnxgraph.export import export_onnx
from autoprune.onnxgraph.resizer import Resizer
from autoprune.profiling.policy_timer import make_policy_timer
from autoprune.records import Policy
from autoprune.structure import analyze
from autoprune.task.models import MobileNetTiny, resnet8, resnet20
from tests.small_nets import NETS


def _outputs(model_bytes, target, x):
    session = open_session(model_bytes, target)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@cache
def built_in(name):
    """The structure of a built-in model, and its dense export."""
    torch.manual_seed(0)
    nets = {"resnet8": resnet8, "resnet20": resnet20, "mobilenet-tiny": MobileNetTiny}
    model = nets[name](1, 8, 5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    structure = analyze(model, (torch.randn(1, 1, 8, 8),))
    return structure, export_onnx(model, structure.example_inputs)


def removing(structure, share, seed):
    """A random policy without some of the removable branches."""
    rng = np.random.default_rng(seed)
    gone = [u.removable and rng.random() < share for u in structure.units]
    widths = {u.name: 0 if g else int(rng.integers(1, u.width + 1)) for u, g in zip(structure.units, gone, strict=True)}
    return Policy(space_id="", widths=widths)


def kinds(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(
    "name", ["residual", "blocks", "resnet8", "mobilenet-tiny", pytest.param("resnet20", marks=pytest.mark.slow)]
)
def test_a_resized_model_without_branches_is_what_the_shrunk_model_exports_to(
    name, share, structure_of, dense_of, target
):
    structure, dense = (structure_of(name), dense_of(name)) if name in NETS else built_in(name)
    policy = removing(structure, share, seed=int(10 * share))
    shrunk = structure.shrink(policy).eval()
    resized = onnx.load_model_from_string(Resizer(dense, structure).resize(policy))
    onnx.checker.check_model(resized)
    assert kinds(resized) == kinds(export_onnx(shrunk, structure.example_inputs))
    weights = {name for name in structure.tensors if structure.tensors[name].dim() > 1}
    assert {i.name for i in resized.graph.initializer} & weights == set(shrunk.state_dict()) & weights
    x = torch.randn(3, 1, 8, 8)
    outputs = _outputs(resized.SerializeToString(), target, x)
    np.testing.assert_allclose(outputs, shrunk(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_policies_without_branches_are_resized_and_run(precision, structure_of, removing_space_of, target):
    timer = make_policy_timer(structure_of("blocks"), replace(target, precision=precision))
    assert not timer.notes
    rows = np.array([[levels[0] for levels in removing_space_of("blocks").levels.values()]])
    (kernels,) = timer.kernels(rows)
    assert len(kernels.names) < len(next(iter(timer.kernels(rows + 2))).names)


def test_a_branch_whose_removal_would_take_the_output_is_refused(dense_of):
    graph = onnx.ModelProto()
    graph.CopyFrom(dense_of("blocks"))
    with pytest.raises(LatencyError, match="removing a branch would take the outputs"):
        remove_branches(graph.graph, {"head.weight"})


def test_adding_a_constant_to_an_absent_value_leaves_nothing():
    """As the bias of a matrix product: it is no other branch."""
    constants = {name: numpy_helper.from_array(np.ones((4, 4), np.float32), name) for name in ("w", "bias")}
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in ("x", "y"))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["branch"]),
        helper.make_node("Relu", ["x"], ["stream"]),
        helper.make_node("Add", ["branch", "stream"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["again"]),
        helper.make_node("Neg", ["again"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=[*constants.values()])
    remove_branches(graph, {"w"})
    assert [(n.op_type, list(n.input)) for n in graph.node] == [("Relu", ["x"]), ("Neg", ["stream"])]
    assert not graph.initializer


@pytest.mark.parametrize(
    ("stream", "outputs", "kept"),
    [
        ("stream", ["y"], [("Relu", ["x"], ["y"])]),
        ("x", ["y"], [("Identity", ["x"], ["y"])]),
        ("stream", ["y", "stream"], [("Relu", ["x"], ["stream"]), ("Identity", ["stream"], ["y"])]),
        ("stream", ["y", "z"], [("Relu", ["x"], ["y"]), ("Neg", ["y"], ["z"])]),
    ],
)
def test_an_output_that_a_branch_was_added_to_keeps_its_name(stream, outputs, kept):
    """As the hidden states that a transformer returns beside its logits."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in ("x", *outputs)]
    nodes = [
        helper.make_node("Relu", ["x"], ["stream"]),
        helper.make_node("MatMul", [stream, "w"], ["branch"]),
        helper.make_node("Add", [stream, "branch"], ["y"]),
        helper.make_node("Neg", ["y"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializer=[weight])
    remove_branches(graph, {"w"})
    assert [(n.op_type, list(n.input), list(n.output)) for n in graph.node] == kept
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
