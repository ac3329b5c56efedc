"""Factors of weights: the best for the inputs that a layer sees."""

import pytest
import torch
from torch import nn

from autoprune import memory_limits
from autoprune.errors import TrialError
from autoprune.recovery.low_rank import best_factors, factorized
from autoprune.structure import GraphModel, analyze


def normal(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def plain_factors(weight, rank):
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return values[:rank, None] * right[:rank], left[:, :rank]


def lost(weight, rows, first, second):
    return float((rows @ (weight - second @ first).mT).square().mean())


def correlated(count, size):
    """Rows whose variance is in a few directions, which mix all columns."""
    return normal(count, size) * torch.logspace(0, -2, size) @ torch.linalg.qr(normal(size, size, seed=1))[0]


def test_factors_beat_those_of_the_weight_alone_on_correlated_inputs():
    weight, rows = normal(12, 20, seed=2), correlated(400, 20)
    first, second, _ = best_factors(weight, rows, rows @ weight.mT, 4, centred=False)
    assert lost(weight, rows, first, second) < 0.3 * lost(weight, rows, *plain_factors(weight, 4))


@pytest.mark.parametrize("columns", [6_000, 10])
def test_layers_of_any_width_lose_little(columns, monkeypatch):
    monkeypatch.setattr(memory_limits, "RECONSTRUCTION_COLUMNS", columns)
    weight, rows = normal(12, 20, seed=2), correlated(400, 20)
    noisy = rows + 0.01 * normal(400, 20, seed=5)
    first, second, _ = best_factors(weight, noisy, rows @ weight.mT, 6, centred=False)
    assert lost(weight, rows, first, second) < 0.3 * lost(weight, rows, *plain_factors(weight, 6))


@pytest.mark.parametrize("columns", [6_000, 10])
@pytest.mark.parametrize("kept", [5, 12])
def test_a_weight_of_that_rank_and_the_full_rank_are_exact(kept, columns, monkeypatch):
    monkeypatch.setattr(memory_limits, "RECONSTRUCTION_COLUMNS", columns)
    weight, rows = normal(12, 5, seed=3) @ normal(5, 20, seed=4), correlated(400, 20)
    first, second, intercept = best_factors(weight, rows, rows @ weight.mT + 1, kept, centred=True)
    assert (first.shape, second.shape) == ((kept, 20), (12, kept))
    torch.testing.assert_close(second @ first, weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(intercept, torch.ones(12), atol=1e-4, rtol=1e-4)


def test_columns_that_are_always_zero_keep_the_factors_finite():
    rows, weight = normal(30, 20), normal(12, 20, seed=2)
    rows[:, 3:] = 0
    first, second, _ = best_factors(weight, rows, rows @ weight.mT, 3, centred=False)
    assert lost(weight, rows, first, second) < 1e-3 * float((rows @ weight.mT).square().mean())
    with pytest.raises(TrialError, match="must be finite"):
        best_factors(weight, rows * torch.inf, rows @ weight.mT, 3, centred=False)


class Net(nn.Module):
    """A strided and a padded convolution, one without bias before a batch norm, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding="same", dilation=2)
        self.fc = nn.Linear(8 * 16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.body(torch.relu(self.norm(self.stem(x)))))
        return self.head(torch.relu(self.fc(x.flatten(1))))


@pytest.fixture(scope="module")
def whole() -> GraphModel:
    torch.manual_seed(0)
    structure = analyze(Net().eval(), normal(2, 2, 8, 8))
    return structure.shrink(structure.dense_policy(), prove=False).eval()


def test_a_model_at_full_rank_computes_the_same_and_is_left_alone(whole):
    x, before = normal(64, 2, 8, 8), {name: t.clone() for name, t in whole.state_dict().items()}
    split = factorized(whole, {"body.weight": 8, "fc.weight": 16}, (x,))
    torch.testing.assert_close(split(x), whole(x), atol=1e-4, rtol=1e-4)
    assert {name: tuple(t.shape) for name, t in split.state_dict().items() if name.startswith(("body", "fc"))} == {
        "body.0.weight": (8, 8, 3, 3), "body.1.weight": (8, 8, 1, 1), "body.1.bias": (8,),
        "fc.0.weight": (16, 128), "fc.1.weight": (16, 16), "fc.1.bias": (16,),
    }  # fmt: skip
    assert all(torch.equal(t, before[name]) for name, t in whole.state_dict().items())


def test_later_layers_make_up_for_the_errors_of_earlier_ones(whole):
    x, held_out = normal(256, 2, 8, 8), normal(64, 2, 8, 8, seed=9)
    ranks = {"stem.weight": 2, "fc.weight": 12}
    split = factorized(whole, ranks, (x,))
    alone = {name.split(".")[0]: factorized(whole, {name: rank}, (x,)).state_dict() for name, rank in ranks.items()}
    alone["norm"] = alone["stem"]
    apart = factorized(whole, ranks, (x,))
    apart.load_state_dict(
        {name: alone.get(name.split(".")[0], whole.state_dict())[name] for name in apart.state_dict()}
    )
    with torch.no_grad():
        errors = [float((model(held_out) - whole(held_out)).square().mean()) for model in (split, apart)]
    assert errors[0] < 0.5 * errors[1]
    assert split.pruned_to is not None
    assert split.pruned_to.ranks == ranks


def test_factors_train(whole):
    split = factorized(whole, {"fc.weight": 4}, (normal(16, 2, 8, 8),)).train()
    split(normal(8, 2, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in split.parameters())
