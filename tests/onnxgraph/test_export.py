import copy
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from autoprune.device.timing import open_session
from autoprune.errors import LatencyError, RunFolderError, StructureError
from autoprune.onnxgraph.export import export_onnx, is_transposed, plain_name, with_constant_weights
from autoprune.onnxgraph.resizer import Resizer
from autoprune.onnxgraph.sizes import learn_sizes
from autoprune.records import Policy
from autoprune.structure import Structure
from tests.small_nets import MIXED, Residual


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
