import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from autoprune.device.timing import named_feeds, open_session
from autoprune.errors import StructureError
from autoprune.onnxgraph.export import export_onnx
from autoprune.onnxgraph.layer_steps import steps_of_onnx
from autoprune.onnxgraph.treated import treated
from autoprune.quantization.grid import Range, nearest
from autoprune.records import Policy
from autoprune.structure.placement import Placement
from autoprune.treatments import INT8, Treatment
from tests.hosts import ARITHMETIC
from tests.small_nets import MIXED, NETS

RANGE = Range(low=-4.0, high=4.0)


def placement_of(model):
    return Placement(steps_of_onnx(model.graph))


def int8_keys(placement, layers):
    return {placement.keys(layers)[tensor] for tensor in placement.int8_tensors(layers)}


def quantized_values(model):
    """The values that a file quantizes, without the constants."""
    return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def run(model, target, feeds):
    session = open_session(model.SerializeToString(), target)
    return session.run(None, named_feeds(session, feeds))[0]


@pytest.mark.parametrize("name", [*NETS, *MIXED])
def test_graph_and_file_place_the_same_tensors(name, structure_of, dense_of):
    structure, rng = structure_of(name), np.random.default_rng(0)
    names, file = [layer.name for layer in structure.layers if layer.allows(INT8)], placement_of(dense_of(name))
    for layers in [names, *([n for n in names if rng.random() < 0.5] for _ in range(10))]:
        assert int8_keys(structure.placement, layers) == int8_keys(file, layers)
        model = treated(dense_of(name), dict.fromkeys(layers, INT8))
        tensors = {file.tensor_of(value.removesuffix("_fp32")) for value in quantized_values(model)}
        assert tensors == file.int8_tensors(layers)


def test_the_placement_of_a_cut_model_lacks_its_removed_branches(structure_of, feeds):
    structure = structure_of("blocks")
    removable = [unit.name for unit in structure.units if unit.removable]
    small = structure.shrink(Policy(space_id="", widths=structure.full_widths | {removable[0]: 0}))
    file = export_onnx(small.eval(), structure.example_inputs)
    names = [layer.name for layer in structure.layers]
    keys = int8_keys(structure.placement_in(small.captures[False].graph), names)
    assert keys == int8_keys(placement_of(file), names) < int8_keys(structure.placement, names)
    treated(file, dict.fromkeys(names, INT8))  # removed layers are passed over


@pytest.mark.parametrize("name", [*NETS, *MIXED])
def test_with_ranges_the_outputs_stay_about_the_same(name, structure_of, dense_of, target):
    structure, model = structure_of(name), dense_of(name)
    feeds = [structure.example_inputs[0].numpy()]
    int8 = dict.fromkeys((layer.name for layer in structure.layers if layer.allows(INT8)), INT8)
    ranges = dict.fromkeys(placement_of(model).keys(int8.keys()).values(), RANGE)
    wanted, outputs = run(model, target, feeds), run(treated(model, int8, ranges), target, feeds)
    assert 0 < np.abs(outputs - wanted).max() < 0.1 * np.abs(wanted).max() + 0.05
    np.testing.assert_array_equal(run(treated(model, {}), target, feeds), wanted)


@pytest.mark.parametrize(("kind", "groups"), [(nn.Conv2d, 1), (nn.Conv2d, 2), (nn.ConvTranspose2d, 1)])
def test_the_runtime_rounds_no_weight_of_an_fp32_layer(kind, groups, target):
    """Left to itself, it rounds those between int8 values, with one scale for all: small filters are lost."""
    torch.manual_seed(0)
    middle = kind(4, 2, 3, groups=groups)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
    with torch.no_grad():
        middle.bias[:], net[4].bias[:] = 0.5, 0.0  # no relu is dead, and nothing is below the ranges
        middle.weight.view(-1)[0] = 1000.0  # of the first output: the step of one scale would be 8
        net[4].weight[:] = torch.tensor([0.0, 1.0])[None, :, None, None]
    x = torch.randn(1, 1, 8, 8)
    exported = export_onnx(net, (x,))
    int8 = dict.fromkeys(["0.weight", "4.weight"], INT8)
    ranges = dict.fromkeys(placement_of(exported).keys(int8).values(), Range(low=0.0, high=4.0))
    ranges["0.weight.input"] = RANGE
    outputs, wanted = (
        run(m, target, [x.numpy()]) for m in (treated(exported, int8, ranges, arithmetic=ARITHMETIC), exported)
    )
    assert wanted.std() > 0.05
    assert np.corrcoef(outputs.ravel(), wanted.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("clip", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.1, 0.2)], ids=str)
def test_a_linear_layer_with_a_relu_that_is_read_in_fp32_stays_int8(clip, target, tmp_path):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(32, 32), clip, nn.Linear(32, 8)).eval(), torch.rand(4, 32)
    ranges = {"0.weight.input": Range(low=0.0, high=1.0)}
    model = treated(export_onnx(net, (x,)), {"0.weight": INT8}, ranges, arithmetic=ARITHMETIC)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[target.provider])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QGemm" in kinds
    assert "FusedGemm" not in kinds
    assert np.abs(run(model, target, [x.numpy()]) - net(x).detach().numpy()).max() < 0.02


def test_an_almost_dead_filter_does_not_overflow_its_bias(target):
    net = nn.Conv2d(1, 2, 3).eval()
    assert net.bias is not None
    with torch.no_grad():
        net.weight[0] *= 1e-9
        net.weight[1], net.bias[1] = 0, 0
        net.bias[0] = 1.5
    x = torch.randn(1, 1, 8, 8)
    ranges = {"weight.input": RANGE, "weight.output": Range(low=-2.0, high=2.0)}
    outputs = run(treated(export_onnx(net, (x,)), {"weight": INT8}, ranges), target, [x.numpy()])
    assert np.abs(outputs - net(x).detach().numpy()).max() < 0.01


def test_a_layer_that_runs_twice_has_one_weight_and_two_biases(target):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.sigmoid(self.conv(x)))

    torch.manual_seed(0)
    net, x = Twice().eval(), torch.randn(1, 2, 4, 4)
    ranges = dict.fromkeys(["conv.weight.input", "conv.weight.output", "conv.weight.2.input"], RANGE)
    ranges["conv.weight.2.output"] = RANGE
    model = treated(export_onnx(net, (x,)), {"conv.weight": INT8}, ranges)
    kinds = [numpy_helper.to_array(initializer).dtype for initializer in model.graph.initializer]
    assert kinds.count(np.dtype(np.int32)) == 4  # two biases and their zero points
    assert sum(i.name == "conv.weight_quantized" for i in model.graph.initializer) == 1
    assert np.abs(run(model, target, [x.numpy()]) - net(x).detach().numpy()).max() < 0.1


def test_what_cannot_be_written_is_refused(dense_of):
    model = dense_of("flat")
    onnx.checker.check_model(treated(model, {"head.weight": INT8}))
    with pytest.raises(StructureError, match=r"w4 is for linear layers; 'features.0.weight' is a convolution"):
        treated(model, {"features.0.weight": Treatment(precision="w4")})
    with pytest.raises(
        StructureError, match=r"'head.weight' cannot be int8: its ONNX file has other steps around it.*Keep it"
    ):
        treated(model, {"head.weight": INT8}, {})
    with pytest.raises(StructureError, match=r"multiplies with 'head.bias' alone"):
        treated(model, {"head.bias": INT8})


def test_a_bias_of_zeros_that_the_exporter_leaves_out_takes_the_correction(target):
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)).eval()
    file = export_onnx(model, (torch.zeros(1, 2, 4, 4),))
    assert not any("bias" in initializer.name for initializer in file.graph.initializer)
    weight = nearest(model[0].weight.detach().numpy(), np.array([1.0, 2.0, 3.0], np.float32), RANGE.scale)
    ranges = {"0.weight.input": RANGE, "0.weight.output": RANGE}
    outputs = run(
        treated(file, {"0.weight": INT8}, ranges, {"0.weight": weight}), target, [np.zeros((1, 2, 4, 4), "f4")]
    )
    np.testing.assert_allclose(outputs[0, :, 0, 0], [1, 2, 3], atol=RANGE.scale)
