import logging
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from autoprune.device.timing import named_feeds, open_session
from autoprune.errors import StructureError
from autoprune.onnxgraph.export import plain_name
from autoprune.onnxgraph.quantization import quantized
from autoprune.onnxgraph.resizer import Resizer
from autoprune.profiling.policy_timer import make_policy_timer
from tests.hosts import OVERFLOWS
from tests.small_nets import NETS


@pytest.fixture(scope="module")
def int8_of(dense_of, feeds):
    """The int8 model of a net, made once."""
    made = {}

    def build(name):
        if name not in made:
            made[name] = quantized(dense_of(name), feeds, seven_bits=OVERFLOWS)
        return made[name]

    return build


def outputs(model, target, feeds):
    session = open_session(model, target)
    return session.run(None, named_feeds(session, feeds))[0]


def test_an_int8_model_computes_about_the_same(net, int8_of, dense_of, target, feeds):
    quantized_outputs = outputs(int8_of(net).SerializeToString(), target, feeds)
    wanted = outputs(dense_of(net).SerializeToString(), target, feeds)
    assert quantized_outputs.shape == wanted.shape
    assert 0 < np.abs(quantized_outputs - wanted).max() < 0.1 * np.abs(wanted).max()


def test_weights_are_int8_and_keep_their_names(net, int8_of, structure_of):
    kinds = {i.name: i.data_type for i in int8_of(net).graph.initializer}
    weights = [name for name in structure_of(net).tensors if name.endswith("weight") and f"{name}_quantized" in kinds]
    assert len(weights) >= 3
    assert {kinds[f"{name}_quantized"] for name in weights} == {TensorProto.INT8}
    assert not any(name in kinds for name in weights)
    assert all(plain_name(f"{name}_quantized") == name for name in weights)


@pytest.mark.parametrize("seed", range(3))
def test_a_resized_int8_model_runs_and_has_int8_weights_of_the_widths(net, seed, int8_of, structure_of, target, feeds):
    structure = structure_of(net)
    rng = np.random.default_rng(seed)
    widths = {unit.name: int(rng.integers(1, unit.width + 1)) for unit in structure.units}
    policy = replace(structure.dense_policy(), widths=widths)
    model = Resizer(int8_of(net), structure).resize(policy)
    quantized_outputs = outputs(model, target, feeds)
    assert quantized_outputs.shape == (1, 5)
    assert np.isfinite(quantized_outputs).all()
    shapes = {i.name: tuple(i.dims) for i in onnx.load_from_string(model).graph.initializer}
    small = structure.shrink(policy, prove=False).state_dict()
    checked = [name for name in small if f"{name}_quantized" in shapes and name.endswith("weight")]
    assert len(checked) >= 3
    for name in checked:
        assert shapes[f"{name}_quantized"] == tuple(small[name].shape)


def test_the_full_widths_give_the_int8_model_itself(net, int8_of, structure_of, target, feeds):
    structure = structure_of(net)
    model = Resizer(int8_of(net), structure).resize(structure.dense_policy())
    wanted = outputs(int8_of(net).SerializeToString(), target, feeds)
    np.testing.assert_array_equal(outputs(model, target, feeds), wanted)


@pytest.mark.parametrize("name", NETS)
def test_int8_targets_need_no_export_of_every_policy(name, structure_of, target):
    timer = make_policy_timer(structure_of(name), replace(target, precision="int8"))
    assert timer.notes == ()
    assert any(i.data_type == TensorProto.INT8 for i in timer.dense_onnx.graph.initializer)


def test_a_calibration_with_another_number_of_inputs_is_a_clear_error(dense_of, feeds):
    level = logging.root.level
    with pytest.raises(StructureError, match=r"cannot be quantized to int8: .*zip"):
        quantized(dense_of("flat"), [*feeds, *feeds])
    assert logging.root.level == level


def test_a_file_is_quantized_like_its_content(int8_of, dense_of, feeds, tmp_path):
    (tmp_path / "model.onnx").write_bytes(dense_of("flat").SerializeToString())
    assert quantized(tmp_path / "model.onnx", feeds, seven_bits=OVERFLOWS).graph == int8_of("flat").graph


def test_the_fp32_model_is_left_alone(dense_of, feeds):
    before = dense_of("flat").SerializeToString()
    quantized(dense_of("flat"), feeds)
    assert dense_of("flat").SerializeToString() == before
