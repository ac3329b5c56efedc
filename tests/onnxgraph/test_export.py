import copy
from collections import Counter
from dataclasses import replace
from functools import cache, partial

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from autoprune.device.timing import open_session
from autoprune.errors import LatencyError, RunFolderError, StructureError
from autoprune.onnxgraph.branches import remove_branches
from autoprune.onnxgraph.export import export_onnx, is_transposed, plain_name, with_constant_weights
from autoprune.onnxgraph.resizer import Resizer
from autoprune.onnxgraph.sizes import learn_sizes
from autoprune.profiling.policy_timer import make_policy_timer
from autoprune.records import Policy
from autoprune.structure import Structure, analyze
from autoprune.task.models import MobileNetTiny, resnet8, resnet20
from tests.small_nets import MIXED, NETS, Residual


def _outputs(model_bytes, target, x):
    session = open_session(model_bytes, target)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def _random_policy(space, seed):
    rng = np.random.default_rng(seed)
    return space.policy({name: int(rng.choice(levels)) for name, levels in space.levels.items()})


def test_the_export_equals_the_model_at_any_batch(net, structure_of, dense_of, target):
    model = structure_of(net).model
    for batch in (1, 3):
        x = torch.randn(batch, 1, 8, 8)
        outputs = _outputs(dense_of(net).SerializeToString(), target, x)
        np.testing.assert_allclose(outputs, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_resized_model_is_the_shrunk_model(net, seed, structure_of, dense_of, space_of, target):
    structure = structure_of(net)
    policy = _random_policy(space_of(net), seed)
    x = torch.randn(3, 1, 8, 8)
    wanted = structure.shrink(policy, prove=False).eval()(x).detach().numpy()
    outputs = _outputs(Resizer(dense_of(net), structure).resize(policy), target, x)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-5)


def test_a_resized_model_is_really_smaller(structure_of, dense_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    resizer = Resizer(dense_of("residual"), structure)
    small = onnx.load_model_from_string(resizer.resize(space.smallest()))
    shapes = {i.name: tuple(i.dims) for i in small.graph.initializer}
    assert shapes["body.0.weight"] == (2, 2, 3, 3)
    assert len(resizer.resize(space.smallest())) < len(resizer.resize(space.largest()))


def test_weights_keep_their_state_dict_names_and_batch_norm_is_folded(dense_of):
    graph = dense_of("residual").graph
    assert {"stem.0.weight", "body.0.weight", "head.weight", "head.bias"} <= {i.name for i in graph.initializer}
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_no_denormal_weight_is_timed(structure_of, space_of):
    structure = structure_of("residual")
    dense = export_onnx(copy.deepcopy(structure.model), structure.example_inputs)
    weight = next(i for i in dense.graph.initializer if i.name == "head.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full((5, 16), 1e-40, np.float32), "head.weight"))
    resized = onnx.load_model_from_string(Resizer(dense, structure).resize(space_of("residual").largest()))
    weight = next(numpy_helper.to_array(i) for i in resized.graph.initializer if i.name == "head.weight")
    assert (weight == 0).all()


def test_a_weight_that_changed_its_rank_is_refused(structure_of, dense_of, space_of):
    dense = onnx.ModelProto()
    dense.CopyFrom(dense_of("residual"))
    weight = next(i for i in dense.graph.initializer if i.name == "head.weight")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((1, 5, 16), np.float32), "head.weight"))
    with pytest.raises(LatencyError, match=r"head\.weight.*3 dimensions"):
        Resizer(dense, structure_of("residual")).resize(space_of("residual").largest())


def test_exporting_leaves_the_model_as_it_was():
    model = Residual().train()
    model.stem.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, (torch.randn(1, 1, 8, 8),))
    assert model.training
    assert not model.stem.training
    assert model.body.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_file_holds_no_path_of_this_machine(dense_of):
    assert b".py" not in dense_of("residual").SerializeToString()


def test_a_model_that_cannot_be_exported_names_the_operator():
    class Eigenvalues(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).abs()

    with pytest.raises(StructureError, match=r"cannot be exported.*linalg_eig"):
        export_onnx(Eigenvalues(), (torch.eye(3)[None],))


def test_a_failed_write_keeps_the_old_file(tmp_path, structure_of, monkeypatch):
    structure = structure_of("flat")
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunFolderError, match="No space left"):
        export_onnx(structure.model, structure.example_inputs, path)
    assert path.read_text() == "old"


def test_constant_weights_are_one_over_the_fan_in_and_the_model_still_runs(net, dense_of, target):
    before = dense_of(net).SerializeToString()
    constant = with_constant_weights(dense_of(net))
    assert dense_of(net).SerializeToString() == before
    for old, new in zip(dense_of(net).graph.initializer, constant.graph.initializer, strict=True):
        assert (old.name, old.dims, old.data_type) == (new.name, new.dims, new.data_type)
        weight = numpy_helper.to_array(new)
        if weight.dtype.kind == "f" and weight.size > 1:
            np.testing.assert_allclose(weight, 1 / max(1, np.prod(weight.shape[1:])), rtol=1e-6)
        else:
            np.testing.assert_array_equal(weight, numpy_helper.to_array(old))
    outputs = _outputs(constant.SerializeToString(), target, torch.ones(1, 1, 8, 8))
    assert np.isfinite(outputs).all()
    assert np.abs(outputs).max() < 100


def test_a_resized_constant_model_has_the_shapes_of_a_resized_one(net, structure_of, dense_of, space_of):
    structure, policy = structure_of(net), space_of(net).smallest()
    plain, constant = (
        onnx.load_model_from_string(Resizer(model, structure).resize(policy)).graph.initializer
        for model in (dense_of(net), with_constant_weights(dense_of(net)))
    )
    assert [(i.name, i.dims) for i in plain] == [(i.name, i.dims) for i in constant]


def test_numbers_without_dimensions_survive_resizing(structure_of, dense_of, space_of):
    dense = onnx.ModelProto()
    dense.CopyFrom(dense_of("flat"))
    dense.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "scale"))
    dense.graph.initializer.append(numpy_helper.from_array(np.array(3, np.uint8), "zero_point"))
    resized = onnx.load_model_from_string(Resizer(dense, structure_of("flat")).resize(space_of("flat").smallest()))
    values = {i.name: numpy_helper.to_array(i) for i in resized.graph.initializer}
    assert values["scale"].shape == values["zero_point"].shape == ()
    assert (values["scale"], values["zero_point"]) == (0.5, 3)
    assert values["zero_point"].dtype == np.uint8


def test_folded_biases_follow_their_weights(structure_of, dense_of):
    """Batch norm gives `inner` a bias with a name of the exporter's; it must be cut as the rows of the weight are."""
    structure = structure_of("residual")
    widths = {unit.name: unit.width for unit in structure.units} | {"inner.0": 3}
    policy = Policy(space_id="", widths=widths)
    resized = onnx.load_model_from_string(Resizer(dense_of("residual"), structure).resize(policy))
    stored = {i.name: numpy_helper.to_array(i) for i in resized.graph.initializer}
    before = {i.name: numpy_helper.to_array(i) for i in dense_of("residual").graph.initializer}
    node = next(n for n in resized.graph.node if "inner.0.weight" in n.input)
    bias = node.input[2]
    assert bias not in structure.tensors
    assert stored["inner.0.weight"].shape[0] == 3
    np.testing.assert_array_equal(stored[bias], before[bias][:3])


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a.weight", "a.weight"),
        ("a.weight_quantized", "a.weight"),
        ("a.weight_DequantizeLinear_Output", "a.weight"),
        ("a.bias_quantized_DequantizeLinear_Output", "a.bias"),
        ("a.weight_transposed", "a.weight"),
        ("a.weight_transposed_quantized_DequantizeLinear_Output", "a.weight"),
        ("quantized_a", "quantized_a"),
    ],
)
def test_quantized_values_have_the_name_of_their_weight(name, plain):
    assert plain_name(name) == plain
    assert is_transposed(name) == ("transposed" in name)


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("share", [1, 3, None])
def test_nets_of_other_operators_are_resized(name, share, structure_of, dense_of, attention_sizes, target):
    """Layers over sequences are exported as products with transposed weights, which must be cut on the other side."""
    structure = structure_of(name)
    policy = Policy(space_id="", widths={u.name: min(share or u.width, u.width) for u in structure.units})
    shape = (2, *structure.example_inputs[0].shape[1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = structure.shrink(policy, prove=False).eval()(x).detach().numpy()
    sizes = attention_sizes if name == "attention" else None
    outputs = _outputs(Resizer(dense_of(name), structure, sizes).resize(policy), target, x)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def attention_sizes(structure_of, dense_of):
    """Attention has sizes in its reshapes."""
    structure = structure_of("attention")
    return learn_sizes(dense_of("attention"), structure, partial(_narrow_export, structure))


def _narrow_export(structure: Structure, policy: Policy) -> onnx.ModelProto:
    return export_onnx(structure.shrink(policy, prove=False).eval(), structure.example_inputs)


def test_transposed_weights_have_the_name_of_their_parameter(structure_of, dense_of):
    stored = {i.name: numpy_helper.to_array(i) for i in dense_of("attention").graph.initializer}
    tensors = structure_of("attention").tensors
    transposed = [name for name in stored if is_transposed(name)]
    assert {plain_name(name) for name in transposed} >= {"wide.weight", "narrow.weight"}
    for name in transposed:
        np.testing.assert_array_equal(stored[name], tensors[plain_name(name)].detach().numpy().T)


def test_the_dense_export_is_left_alone(structure_of, dense_of, space_of):
    before = dense_of("depthwise").SerializeToString()
    resizer = Resizer(dense_of("depthwise"), structure_of("depthwise"))
    first = resizer.resize(space_of("depthwise").smallest())
    resizer.resize(space_of("depthwise").largest())
    assert resizer.resize(space_of("depthwise").smallest()) == first
    assert dense_of("depthwise").SerializeToString() == before


# --- removed branches


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
@pytest.mark.parametrize("name", ["residual", "blocks", "resnet8", "resnet20", "mobilenet-tiny"])
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
