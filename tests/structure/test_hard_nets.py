"""Networks that once were refused, crashed, or counted wrongly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import StructureError
from autoprune.pruning import prune
from autoprune.records import Policy
from autoprune.structure import Structure, analyze, proof


def shrink_randomly(structure: Structure, seed: int = 0) -> nn.Module:
    """A random policy with random channels, proven by `shrink` itself."""
    rng = np.random.default_rng(seed)
    keep = {u.name: rng.choice(u.width, rng.integers(1, u.width + 1), replace=False) for u in structure.units}
    return structure.shrink(Policy(space_id="", widths={n: len(k) for n, k in keep.items()}), keep)


def counted(model: nn.Module, x: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x[:1])
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (
            nn.Sequential(nn.Conv1d(4, 32, 3), nn.ReLU(), nn.Conv1d(32, 16, 3), nn.Flatten(), nn.Linear(256, 5)),
            (2, 4, 20),
        ),
        (nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4)), (2, 20, 8)),
        (nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), (2, 6, 5, 8)),
    ],
    ids=["conv1d", "tokens", "grid"],
)
def test_macs_of_sequences_follow_the_widths(net: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    structure = analyze(net.eval(), (x,))
    half = Policy(space_id="", widths={n: w // 2 for n, w in structure.full_widths.items()})
    for policy in (structure.dense_policy(), half):
        assert structure.macs(structure.widths([policy]))[0] == counted(structure.shrink(policy), x)
    channels = [
        int(op.c_out(structure.widths([half]))[0]) for op in structure.operators if op.op in ("conv1d", "linear")
    ]
    assert channels[0] == 16


def test_deep_batch_norms_do_not_upset_the_proof() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(16)]
    structure = analyze(nn.Sequential(*layers, nn.Linear(64, 3)).eval(), (torch.randn(2, 64),))
    for seed in range(3):
        shrink_randomly(structure, seed)


def test_a_result_that_is_not_finite_is_no_proof() -> None:
    assert proof.output_difference([torch.tensor([float("nan")])], [torch.tensor([1.0])]) == float("inf")
    assert proof.output_difference([torch.tensor([float("nan")])], [torch.tensor([float("nan")])]) == float("inf")
    assert proof.output_difference([torch.tensor([2.0])], [torch.tensor([1.0])]) == 0.5


def test_a_module_that_is_used_twice() -> None:
    layer = nn.Linear(6, 6)
    net = nn.Sequential(nn.Linear(4, 6), layer, nn.ReLU(), layer, nn.Linear(6, 2)).eval()
    shrunk = shrink_randomly(analyze(net, (torch.randn(2, 4),)))
    assert shrunk.state_dict().keys() == net.state_dict().keys()
    assert shrunk.get_parameter("1.weight") is shrunk.get_parameter("3.weight")


class Normalised(nn.Module):
    """Constants that are made in forward or held as plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.tensor([0.1, 0.2, 0.3])
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a((x - self.offset) / torch.tensor([0.5, 0.6, 0.7]))))


def test_constants_of_forward_are_kept_and_add_no_names() -> None:
    net = Normalised().eval()
    structure = analyze(net, (torch.randn(2, 3),))
    shrunk = structure.shrink(structure.dense_policy())
    x = torch.randn(4, 3)
    with torch.no_grad():
        torch.testing.assert_close(shrunk(x), net(x))
    assert shrunk.state_dict().keys() == net.state_dict().keys()
    shrink_randomly(structure)


class ComputedWeight(nn.Module):
    """A grouped convolution whose weight comes from an operator without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.z, self.raw = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1), nn.Parameter(torch.randn(8, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cumprod(self.raw, 0)
        return self.z(F.relu(F.conv2d(F.relu(self.z.weight.sum() * 0 + self.a(x)), weight, groups=4))).mean((2, 3))


class OneChannelGate(nn.Module):
    """The first channel gates all others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.z = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.z(F.relu(self.b(x * x[:, :1].sigmoid()))).mean((2, 3))


class StochasticDepth(nn.Module):
    """Random numbers of the batch's shape in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.z = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = (torch.rand(x.shape[0], 1) > 0.5).to(x.dtype) if self.training else 1.0
        return self.z(x + gate * F.relu(self.b(x)))


class MergedWithBatch(nn.Module):
    """Channels become examples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.z = nn.Conv2d(2, 6, 1), nn.Conv2d(1, 4, 1), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = F.relu(self.b(x.reshape(x.shape[0] * 6, 1, 8, 8))).mean((2, 3))
        return self.z(y.view(x.shape[0], 24))


class Prelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.z = nn.Conv2d(2, 6, 1), nn.PReLU(6), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.z(self.act(self.a(x))).mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "shape", "free"),
    [
        (OneChannelGate, (2, 2, 8, 8), {"b"}),
        (StochasticDepth, (2, 4), {"a"}),
        (Prelu, (2, 2, 8, 8), {"a"}),
    ],
)
def test_free_units_are_listed_and_random_cuts_are_proven(
    kind: type[nn.Module], shape: tuple[int, ...], free: set
) -> None:
    structure = analyze(kind().eval(), (torch.randn(shape),))
    assert {u.name for u in structure.units} >= free
    for seed in range(3):
        shrink_randomly(structure, seed)


def test_channels_that_become_examples_may_go() -> None:
    structure = analyze(MergedWithBatch().eval(), (torch.randn(2, 2, 8, 8),))
    assert {u.name: u.width for u in structure.units} == {"a": 6, "b": 4}
    for seed in range(3):
        shrink_randomly(structure, seed)


def test_a_grouped_convolution_with_a_computed_weight_is_left_alone() -> None:
    with pytest.raises(StructureError, match=r"nothing .* can be pruned: .* aten.cumprod"):
        analyze(ComputedWeight().eval(), (torch.randn(2, 2, 8, 8),))


def test_an_example_without_dimensions_is_refused() -> None:
    with pytest.raises(StructureError, match=r"cannot be traced by torch\.export"):
        analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), (torch.tensor(1.0),))


def test_a_forward_that_fixes_the_batch_size_is_refused() -> None:
    class PerExample(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.b(one[None])[0].mean((1, 2)) for one in F.relu(self.a(x))])

    with pytest.raises(StructureError, match="must run on any number of examples"):
        analyze(PerExample().eval(), (torch.randn(1, 3, 8, 8),))


def test_masked_scores_are_equal_where_they_are_minus_infinity():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
            self.register_buffer("mask", torch.tensor([True, False, True, False]))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x))).masked_fill(self.mask, float("-inf"))

    x = torch.randn(3, 6)
    for small in (shrink_randomly(analyze(Masked().eval(), (x,)), seed=1), prune(Masked(), x, keep=0.5, native=True)):
        assert torch.isinf(small(x)).sum() == 6


def test_a_convolution_with_a_group_for_each_example_fixes_its_own_channels_alone() -> None:
    class PerExample(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 8), nn.Conv2d(6, 10, 1), nn.Linear(10, 2)
            self.kernels = nn.Linear(8, 6 * 2)

        def forward(self, x: Tensor) -> Tensor:
            batch, _, rows, columns = x.shape
            kernels = self.kernels(F.relu(self.first(x.mean((2, 3)))))
            x = x[:, :2].reshape(1, batch * 2, rows, columns)
            x = F.conv2d(x, kernels.view(batch * 6, 2, 1, 1), groups=batch).view(batch, 6, rows, columns)
            return self.head(F.relu(self.second(x)).mean((2, 3)))

    structure = analyze(PerExample(), (torch.randn(2, 3, 4, 4),))
    assert structure.full_widths == {"first": 8, "second": 10}
    (reason,) = {f.reason for f in structure.fixed if f.parameter == "kernels.weight"}
    assert "each example" in reason
    shrink_randomly(structure)


def test_a_projected_lstm_alone_says_why_nothing_can_be_pruned() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 8, proj_size=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    with pytest.raises(StructureError, match="proj_size"):
        analyze(Projected(), (torch.randn(2, 5, 3),))


def test_a_weight_that_a_parametrization_computes_says_how_to_take_it_out() -> None:
    norm = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(norm(nn.Conv2d(3, 6, 1)), nn.ReLU(), norm(nn.Conv2d(6, 2, 1)))
    with pytest.raises(StructureError, match=r"remove_parametrizations\(0, 'weight'\)"):
        analyze(model, (torch.randn(2, 3, 4, 4),))
