"""Files whose layers have factors: as exported, and as made for timing; their twins in every precision."""

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.device.timing import named_feeds, open_session
from autoprune.onnxgraph.export import export_onnx
from autoprune.onnxgraph.treated import treated
from autoprune.quantization.calibration import calibrated, split_treatments
from autoprune.quantization.twin import make_twin
from autoprune.records import Policy
from autoprune.recovery.low_rank import factorized
from autoprune.structure import analyze
from autoprune.structure.low_rank import treatments_of_factors
from autoprune.treatments import Treatment
from tests.hosts import ARITHMETIC

RANKS = {"conv.weight": 4, "tokens.weight": 5, "rows.weight": 6}


class Net(nn.Module):
    """A convolution with a batch norm, then linear layers on rows, with and without a bias, and on one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.tokens = nn.Linear(16, 12, bias=False)
        self.rows = nn.Linear(12, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        x = torch.relu(self.rows(torch.relu(self.tokens(x))))
        return self.head(x.mean(1))


def random_inputs(*, count: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linspace(-2, 2, count)[:, None, None, None] * (1 + torch.randn(count, 3, 7, 7, generator=generator))


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.norm.running_var.uniform_(0.5, 2)
        net.norm.bias.normal_()
    structure = analyze(net, random_inputs(count=2))
    widths = {unit.name: max(1, unit.width - 1) for unit in structure.units}
    whole = structure.shrink(Policy(space_id="", widths=widths), prove=False).eval()
    return structure, whole, factorized(whole, RANKS, (random_inputs(),))


KINDS = (".weight", ".weight_transposed", ".bias")


def shapes(model):
    return {i.name: list(i.dims) for i in model.graph.initializer if i.name.endswith(KINDS)}


def outputs(model, target, x):
    session = open_session(model.SerializeToString(), target)
    return session.run(None, named_feeds(session, [x.numpy()]))[0]


def test_files_for_timing_have_the_layers_of_the_exported_ones(world, target):
    structure, whole, factored = world
    x, wanted = random_inputs(count=1), export_onnx(factored, structure.example_inputs)
    timed = treated(export_onnx(whole, structure.example_inputs), {n: Treatment(rank=r) for n, r in RANKS.items()})
    assert [node.op_type for node in timed.graph.node] == [node.op_type for node in wanted.graph.node]
    assert shapes(timed) == shapes(wanted)
    assert np.isfinite(outputs(timed, target, x)).all()
    np.testing.assert_allclose(outputs(wanted, target, x), factored(x).detach(), rtol=1e-4, atol=1e-4)
    assert treated(wanted, {n: Treatment(rank=r) for n, r in RANKS.items()}) == treated(wanted, {})


def test_a_layer_that_is_too_narrow_for_its_rank_is_written_whole(world):
    structure, whole, _ = world
    exported = export_onnx(whole, structure.example_inputs)
    wide = {"rows.weight": Treatment(rank=9), "head.weight": Treatment(rank=2, precision="int8")}
    split = treated(exported, wide)
    assert "rows.0.weight_transposed" not in shapes(split)
    assert {"head.0.weight_quantized", "head.1.weight_quantized"} <= {i.name for i in split.graph.initializer}


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "w8"])
def test_factors_have_precisions_and_a_twin(world, target, precision):
    structure, _, model = world
    layers = [name for name in RANKS if precision == "int8" or "conv" not in name]
    treatments = {name: Treatment(precision=precision, rank=RANKS[name]) for name in layers}
    x, placement = random_inputs(), structure.placement_in(model.captures[False].graph)
    int8, local = split_treatments(treatments_of_factors(treatments, RANKS))
    assert len(int8) + len(local) == 2 * len(layers)
    numbers = calibrated(model, placement, int8, (x,), local, arithmetic=ARITHMETIC)
    file = treated(
        export_onnx(model, structure.example_inputs), treatments, numbers.ranges, numbers.weights, ARITHMETIC
    )
    with torch.no_grad():
        fp32, twin, written = (
            model(x).numpy(),
            make_twin(model, placement, numbers)(x).numpy(),
            outputs(file, target, x),
        )
    spread = (fp32 - fp32.mean(0)).std()
    assert (twin - written).std() < 0.02 * spread
    assert 0 < (twin - fp32).std() < 0.2 * spread
