"""The twin computes what ONNX Runtime computes from the file, on nets of all kinds."""

import copy
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.device.timing import named_feeds, open_session
from autoprune.errors import PolicyError, RunFolderError, StructureError, TaskError, TrialError
from autoprune.onnxgraph.export import export_onnx
from autoprune.onnxgraph.treated import treated
from autoprune.quantization.arithmetic import FP32_INPUTS, INT8_INPUTS, WEIGHT_ONLY, Arithmetic
from autoprune.quantization.calibration import calibrated, split_treatments
from autoprune.quantization.grid import LARGEST_SATURATING_WEIGHT
from autoprune.quantization.numbers import Quantization
from autoprune.quantization.twin import folded_layers, make_twin
from autoprune.records import Policy
from autoprune.recovery.optimal_rounding import MomentRounding
from autoprune.structure import analyze
from autoprune.treatments import INT8, Treatment
from tests.hosts import ARITHMETIC
from tests.small_nets import MIXED, NETS


def inputs_of(structure, count=64):
    shape = structure.example_inputs[0].shape[1:]
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    strength = torch.linspace(-3, 3, count).reshape(-1, *[1] * len(shape))
    return strength * (1 + x)  # examples differ, so that outputs do


def twin_and_file(structure, model, exported, layers, target, path, local=None, arithmetic=ARITHMETIC):
    """The outputs of a model, its twin and its file."""
    placement, x = structure.placement_in(model.captures[False].graph), inputs_of(structure)
    local = local or {}
    calibrated(model, placement, layers, (x,), local, arithmetic=arithmetic).save(path)
    numbers, treatments = Quantization.load(path), {**dict.fromkeys(layers, INT8), **local}
    file = treated(exported, treatments, numbers.ranges, numbers.weights, numbers.arithmetic)
    session = open_session(file.SerializeToString(), target)
    with torch.no_grad():
        twin = make_twin(model, placement, numbers)
        return model(x).numpy(), twin(x).numpy(), session.run(None, named_feeds(session, [x.numpy()]))[0]


@pytest.mark.parametrize("name", [*NETS, *MIXED])
def test_the_twin_agrees_with_the_file_at_random_widths_and_layers(name, structure_of, target, tmp_path):
    structure, rng = structure_of(name), np.random.default_rng(1)
    widths = {unit.name: int(rng.integers(unit.width // 2, unit.width + 1)) for unit in structure.units}
    model = structure.shrink(Policy(space_id="", widths=widths), prove=False).eval()
    exported = export_onnx(model, structure.example_inputs)
    names = [layer.name for layer in structure.layers if layer.allows(INT8)]
    for layers in (names, [n for n in names if rng.random() < 0.5] or names[:1]):
        fp32, twin, file = twin_and_file(structure, model, exported, layers, target, tmp_path / "int8.safetensors")
        spread = (fp32 - fp32.mean(0)).std()
        assert (twin - file).std() < 0.03 * spread
        assert 0 < (twin - fp32).std() < 0.1 * spread
        assert (file.argmax(1) == twin.argmax(1)).mean() > 0.98


def test_int8_needs_examples(structure_of):
    structure = structure_of("flat")
    model = structure.shrink(structure.dense_policy(), prove=False).eval()
    for inputs in ((), (inputs_of(structure)[:0],)):
        with pytest.raises(TaskError, match="from one training example or more; got none"):
            calibrated(model, structure.placement_in(model.captures[False].graph), ["head.weight"], inputs)


def test_weights_of_seven_bits_are_what_the_file_computes_with(structure_of, target):
    structure = structure_of("flat")
    model = structure.shrink(structure.dense_policy(), prove=False).eval()
    placement, x = structure.placement_in(model.captures[False].graph), inputs_of(structure)
    names, limit = [layer.name for layer in structure.layers if layer.allows(INT8)], LARGEST_SATURATING_WEIGHT
    for rounding in (MomentRounding(), None):
        numbers = calibrated(
            model, placement, names, (x,), rounding=rounding, arithmetic=Arithmetic(largest_weight=limit)
        )
        assert max(int(np.abs(weight.steps.astype(int)).max()) for weight in numbers.weights.values()) == limit
    exported = export_onnx(model, structure.example_inputs)
    file = treated(exported, dict.fromkeys(names, INT8), numbers.ranges, numbers.weights)
    session = open_session(file.SerializeToString(), target)
    with torch.no_grad():
        twin, fp32 = make_twin(model, placement, numbers)(x).numpy(), model(x).numpy()
    spread = (fp32 - fp32.mean(0)).std()
    assert (twin - session.run(None, named_feeds(session, [x.numpy()]))[0]).std() < 0.03 * spread
    assert (twin - fp32).std() < 0.15 * spread


LOCAL = [Treatment.parse(text) for text in ("int8-dynamic", "w8", "w4")]


@pytest.mark.parametrize("treatment", LOCAL, ids=str)
@pytest.mark.parametrize("name", ["flat", "attention", "recurrent"])
def test_linear_layers_that_are_treated_alone_agree_with_the_file(name, treatment, structure_of, target, tmp_path):
    structure, path = structure_of(name), tmp_path / "int8.safetensors"
    widths = {unit.name: unit.width - 1 for unit in structure.units}  # odd ones
    model = structure.shrink(Policy(space_id="", widths=widths), prove=False).eval()
    exported = export_onnx(model, structure.example_inputs)
    linear = [layer.name for layer in structure.layers if layer.allows(treatment) and layer.op == "linear"]
    for alone in (linear, linear[::2]):  # beside nothing, and beside int8 layers
        local, int8 = dict.fromkeys(alone, treatment), [] if alone == linear else linear[1::2]
        fp32, twin, file = twin_and_file(structure, model, exported, int8, target, path, local)
        spread = (fp32 - fp32.mean(0)).std()
        assert (twin - file).std() < (0.03 if int8 else 1e-3) * spread
        assert 0 < (twin - fp32).std() < (0.3 if treatment.precision == "w4" else 0.1) * spread
        assert (file.argmax(1) == twin.argmax(1)).mean() > 0.98


def test_dynamic_layers_have_seven_bits_where_the_arithmetic_says_so(structure_of, target, tmp_path):
    structure, path = structure_of("recurrent"), tmp_path / "numbers.safetensors"
    model = structure.shrink(structure.dense_policy(), prove=False).eval()
    dynamic = [layer.name for layer in structure.layers if "int8-dynamic" in layer.precisions]
    exported, local = export_onnx(model, structure.example_inputs), dict.fromkeys(dynamic, LOCAL[0])
    seven = Arithmetic(largest_weight=LARGEST_SATURATING_WEIGHT)
    _, twin, file = twin_and_file(structure, model, exported, [], target, path, local, seven)
    assert Quantization.load(path).arithmetic == seven
    assert (twin - file).std() < 0.01 * (file - file.mean(0)).std()
    made = treated(exported, local, arithmetic=seven).graph.initializer
    steps = [onnx.numpy_helper.to_array(each) for each in made if each.name.endswith("_quantized")]
    assert len(steps) == 5  # three linear layers, and an LSTM of two weights
    assert {int(np.abs(each.astype(int)).max()) for each in steps} == {LARGEST_SATURATING_WEIGHT}


@pytest.mark.parametrize("precision", WEIGHT_ONLY)
def test_inputs_in_fp32_agree_with_the_file_and_err_less(precision, structure_of, target, tmp_path):
    structure, path = structure_of("flat"), tmp_path / "numbers.safetensors"
    model = structure.shrink(structure.dense_policy(), prove=False).eval()
    exported, local = export_onnx(model, structure.example_inputs), {"head.weight": Treatment(precision=precision)}
    errors = []
    for level in (FP32_INPUTS, INT8_INPUTS):
        arithmetic = replace(ARITHMETIC, accuracy_levels={precision: level})
        fp32, twin, file = twin_and_file(structure, model, exported, [], target, path, local, arithmetic)
        assert np.abs(twin - file).max() < 1e-4 * np.abs(fp32).max()
        errors.append((file - fp32).std())
    assert errors[0] < errors[1]


class Directions(nn.Module):
    """An LSTM of two layers in both directions, with initial states, and one without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.randn(4, 1, 7))
        self.first = nn.LSTM(3, 7, 2, bidirectional=True)
        self.second, self.head = nn.LSTM(14, 6, bias=False, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        state = self.state.expand(-1, x.shape[0], -1)
        y, _ = self.first(x.transpose(0, 1), (state, torch.zeros_like(state)))
        _, (last, _) = self.second(y.transpose(0, 1))
        return self.head(last[-1])


def test_recurrent_layers_that_are_treated_alone_agree_with_the_file(target, tmp_path):
    torch.manual_seed(0)
    structure = analyze(Directions().eval(), (torch.randn(1, 4, 3),))
    layers = [layer for layer in structure.layers if layer.op == "lstm"]
    assert [layer.precisions for layer in layers] == [("fp32", "int8-dynamic")] * 3
    widths = {unit.name: unit.width - 1 for unit in structure.units}
    model = structure.shrink(Policy(space_id="", widths=widths), prove=False).eval()
    exported, local = export_onnx(model, structure.example_inputs), {layer.name: LOCAL[0] for layer in layers}
    fp32, twin, file = twin_and_file(structure, model, exported, [], target, tmp_path / "int8.safetensors", local)
    spread = (fp32 - fp32.mean(0)).std()
    assert (twin - file).std() < 0.01 * spread
    assert 0 < (twin - fp32).std() < 0.1 * spread
    with pytest.raises(StructureError, match=r"an LSTM can be int8-dynamic; 'first.weight_ih_l0' is w8"):
        treated(exported, {"first.weight_ih_l0": LOCAL[1]})


def test_the_runtime_fuses_layers_that_are_treated_alone(structure_of, dense_of, tmp_path):
    options = onnxruntime.SessionOptions()
    for treatment, kernel in zip(LOCAL, ("DynamicQuantizeMatMul", "MatMulNBits", "MatMulNBits"), strict=True):
        file = treated(dense_of("attention"), {"wide.weight": treatment, "head.weight": treatment})
        onnx.checker.check_model(file)
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kernels = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        assert kernels.count(kernel) == 2
        assert not {"DynamicQuantizeLinear", "MatMulInteger", "Cast"} & {*kernels}


def test_removed_branches_and_their_layers_are_passed_over(structure_of, target, tmp_path):
    structure = structure_of("blocks")
    removed = {unit.name: 0 for unit in structure.units if unit.removable}
    model = structure.shrink(Policy(space_id="", widths=structure.full_widths | removed)).eval()
    layers = [layer.name for layer in structure.layers]
    exported = export_onnx(model, structure.example_inputs)
    fp32, twin, file = twin_and_file(structure, model, exported, layers, target, tmp_path / "int8.safetensors")
    assert (twin - file).std() < 0.03 * (fp32 - fp32.mean(0)).std()


def test_the_twin_trains_through_its_rounding_and_leaves_the_model_alone(structure_of):
    structure = structure_of("residual")
    model = structure.shrink(structure.dense_policy()).eval()
    before, x = copy.deepcopy(model.state_dict()), inputs_of(structure)
    layers = [layer.name for layer in structure.layers]
    twin = make_twin(
        model, structure.placement, calibrated(model, structure.placement, layers, (x,), arithmetic=ARITHMETIC)
    )
    loss = nn.functional.mse_loss(twin.train()(x), torch.zeros(64, 5))
    loss.backward()
    gradients = {name: p.grad for name, p in twin.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not bool(gradient.any())] == []
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.sub_(0.05 * parameter.grad)  # pyright: ignore[reportOperatorIssue]
        assert nn.functional.mse_loss(twin(x), torch.zeros(64, 5)) < loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_biases_take_up_what_rounding_moves_the_mean_outputs(structure_of):
    structure = structure_of("residual")
    model, x = structure.shrink(structure.dense_policy()).eval(), inputs_of(structure)
    layers, placement = [layer.name for layer in structure.layers], structure.placement
    numbers = calibrated(model, placement, layers, (x,))
    plain = {name: layer.bias for name, layer in folded_layers(model, placement, layers).items()}
    weights = {n: replace(w, bias=plain[n].numpy()) for n, w in numbers.weights.items()}  # pyright: ignore
    with torch.no_grad():
        shift, uncorrected = (
            float((make_twin(model, placement, each)(x) - model(x)).mean(0).abs().max())
            for each in (numbers, replace(numbers, weights=weights))
        )
    assert shift < 0.1 * uncorrected


def test_faults_are_told(structure_of, tmp_path):
    structure = structure_of("flat")
    model, x = structure.shrink(structure.dense_policy()).eval(), inputs_of(structure)
    policy = replace(structure.dense_policy(), treatments={"head.weight": Treatment(precision="w8", rank=2)})
    with pytest.raises(PolicyError, match=r"no layer is computed as w8\+rank:2; 'head.weight' is to be"):
        split_treatments(policy.treatments)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(TrialError, match="activations must be finite on calibration data"):
        calibrated(model, structure.placement, ["head.weight"], (x,))
    (tmp_path / "torn").write_bytes(b"torn")
    with pytest.raises(RunFolderError, match="absent or damaged"):
        Quantization.load(tmp_path / "torn")


def test_a_layer_that_runs_twice_before_batch_norms_stays_in_fp32():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
            self.one, self.two, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.two(self.conv(self.one(self.conv(self.stem(x)))))
            return self.head(x.mean((2, 3)))

    structure = analyze(Twice().eval(), torch.randn(1, 1, 4, 4))
    model = structure.shrink(structure.dense_policy()).eval()
    with pytest.raises(StructureError, match=r"'conv.weight' runs several times and feeds a batch norm"):
        folded_layers(model, structure.placement, {"conv.weight"})
    assert [*folded_layers(model, structure.placement, {"head.weight"})] == ["head.weight"]


class Bare(nn.Module):
    """A product with a parameter, which the file takes for a layer and the graph does not, beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(0.3 * torch.randn(16, 16))
        self.q = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(torch.relu(x @ self.a + self.q(x)))


class Tokens(nn.Module):
    """Linear layers over tokens: a bias of another name, a shared one, a parameter that is added, unlucky names."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = (nn.Parameter(0.3 * torch.randn(16, 16)) for _ in range(2))
        self.shift, self.after = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))
        self.q, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 5)
        for name in ("weight_scale", "weight_bias", "weight_folded", "weight_transposed_scale"):
            self.head.register_parameter(name, nn.Parameter(0.1 * torch.randn(5)))

    def forward(self, x):
        x = torch.relu(F.linear(x, self.w, self.shift))
        x = torch.relu(F.linear(x, self.v, self.shift))
        x = self.head(torch.relu(self.q(x) + self.after))
        head = self.head
        extra = head.weight_scale + head.weight_bias + head.weight_folded + head.weight_transposed_scale
        return (x + extra).mean(1)


@pytest.mark.parametrize(("net", "shape"), [(Bare, (16,)), (Tokens, (6, 16))])
def test_layers_of_other_names_and_forms_are_told_apart_alike_by_graph_and_file(net, shape, target, tmp_path):
    torch.manual_seed(0)
    structure = analyze(net().eval(), (torch.zeros(1, *shape),))
    model = structure.shrink(structure.dense_policy()).eval()
    layers = [layer.name for layer in structure.layers]
    exported = export_onnx(model, structure.example_inputs)
    fp32, twin, file = twin_and_file(structure, model, exported, layers, target, tmp_path / "int8.safetensors")
    spread = (fp32 - fp32.mean(0)).std()
    assert (twin - file).std() < 0.05 * spread
    assert (file - fp32).std() < 0.1 * spread
