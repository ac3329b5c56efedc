from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.errors import TaskError, UsageError
from autoprune.pruning import SCORES, WEIGHT_SCORES, Calibration, prunable_weights, score_units, score_weights
from autoprune.pruning.expressions import ranks
from autoprune.structure import analyze
from tests.nets import make_net
from tests.small_nets import LastOutput

NET, INPUTS = make_net("residual")
STRUCTURE = analyze(NET, INPUTS)


def calibration(seed: int = 0) -> Calibration:
    generator = torch.Generator().manual_seed(3)
    batches = [
        ((torch.randn(8, 2, 8, 8, generator=generator),), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(2)
    ]
    return Calibration(batches=batches, loss=lambda out, target: F.cross_entropy(out, target), seed=seed)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_finite_positive_and_repeatable(name: str) -> None:
    first, again = score_units(STRUCTURE, name, calibration()), score_units(STRUCTURE, name, calibration())
    for unit in STRUCTURE.units:
        values = first[unit.name]
        assert values.shape == (unit.width,)
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert np.array_equal(values, again[unit.name])
        assert len(np.unique(values)) > 1


def test_norms_by_hand() -> None:
    weights = dict(NET.named_parameters())
    coupled = weights["c2.weight"].abs().sum((1, 2, 3)) + weights["c3.weight"].abs().sum((0, 2, 3))
    np.testing.assert_allclose(score_units(STRUCTURE, "l1")["c2"], coupled.detach().numpy(), rtol=1e-5)
    squares = weights["c2.weight"].square().sum((1, 2, 3)) + weights["c3.weight"].square().sum((0, 2, 3))
    np.testing.assert_allclose(score_units(STRUCTURE, "l2")["c2"], squares.sqrt().detach().numpy(), rtol=1e-5)


def test_bn_scale_by_hand_and_its_fallback() -> None:
    scale = NET.get_parameter("b2.weight").detach().numpy()
    np.testing.assert_allclose(score_units(STRUCTURE, "bn_scale")["c2"], scale, rtol=1e-6)
    plain, inputs = make_net("depthwise")
    structure = analyze(plain, inputs)
    for name, values in score_units(structure, "bn_scale").items():
        np.testing.assert_array_equal(values, score_units(structure, "l2")[name])


def test_a_channel_that_does_nothing_scores_lowest_by_taylor_and_activation() -> None:
    net, inputs = make_net("residual")
    with torch.no_grad():
        net.get_parameter("c2.weight")[4] = 0
        net.get_parameter("c2.bias")[4] = 0
        net.get_parameter("b2.bias")[4] = 0
        net.get_buffer("b2.running_mean")[4] = 0
        net.get_parameter("c3.weight")[:, 4] = 0
    structure = analyze(net, inputs)
    for name in ("taylor", "activation", "l1"):
        values = score_units(structure, name, calibration())["c2"]
        assert values[4] == pytest.approx(0, abs=1e-6)
        assert (values > 1e-6).sum() >= 3


def test_fpgm_prefers_filters_far_from_the_others() -> None:
    net, inputs = make_net("residual")
    with torch.no_grad():
        net.get_parameter("c2.weight")[:] = 0.1
        net.get_parameter("c2.weight")[2] = 5.0
    assert int(np.argmax(score_units(analyze(net, inputs), "fpgm")["c2"])) == 2


def quadratic() -> tuple[nn.Module, Calibration]:
    """Two linear layers of which the loss is a quadratic: derivatives are known by hand."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Identity(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        net.get_parameter("0.weight")[:] = torch.tensor([[1.0, 2.0], [0.5, 0.0], [3.0, 1.0]])
        net.get_parameter("2.weight")[:] = torch.tensor([[1.0, 2.0, -1.0]])
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    return net, Calibration(batches=[((x,), None)], loss=lambda out, _: out.square().mean() / 2)


def test_derivatives_and_norms_by_hand() -> None:
    net, data = quadratic()
    structure, x, (first, second) = analyze(net, (torch.zeros(1, 2),)), data.batches[0][0][0], net.parameters()
    (unit,) = structure.units
    out = x @ first.T @ second.T
    hidden = x @ first.T
    per_example = [(out.view(3, 1) * hidden), out.view(3, 1, 1) * second.view(1, 3, 1) * x.view(3, 1, 2)]
    of_second, of_first = (each.mean(0) for each in per_example)
    wanted = {
        "in_norm": first.norm(dim=1),
        "out_norm": second.abs()[0],
        "gradient": of_first.abs().sum(1) + of_second.abs(),
        "fisher": 0.5 * (first**2 * per_example[1].square().mean(0)).sum(1)
        + 0.5 * second[0] ** 2 * per_example[0].square().mean(0),
        "activation_mean": hidden.mean(0).abs(),
        "activation_variance": hidden.var(0, correction=0),
        "wanda": second.abs()[0] * hidden.square().mean(0).sqrt(),
    }
    for name, values in wanted.items():
        scores = score_units(structure, name, data)[unit.name]
        factor = (
            1 if not name.startswith("activation") else scores.sum() / float(values.detach().sum())
        )  # all nodes carry it
        np.testing.assert_allclose(scores, factor * values.detach().numpy(), rtol=1e-5, err_msg=name)
    # In a loss of degree 4, w g is 4 times the loss in all weights, and w H w is 12 times.
    loss = float(out.detach().square().mean() / 2)
    weights = dict(net.named_parameters())
    of_weights = score_weights(net, weights, "hvp", data)
    changes = {n: (w * (-g + hw / 2)) for (n, w), g, hw in zip(weights.items(), *_derivatives(net, data), strict=True)}
    assert sum(float(c.detach().sum()) for c in changes.values()) == pytest.approx((12 / 2 - 4) * loss, rel=1e-5)
    for name, change in changes.items():
        torch.testing.assert_close(of_weights[name], change.abs())


def _derivatives(net: nn.Module, data: Calibration) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    names, weights = zip(*[(n, p.detach()) for n, p in net.named_parameters()], strict=True)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(net, dict(zip(names, values, strict=True)), data.batches[0][0])
        return out.square().mean() / 2

    gradients = torch.autograd.functional.jacobian(loss, weights)
    return list(gradients), list(torch.autograd.functional.vhp(loss, weights, weights)[1])


@pytest.mark.parametrize("name", ["attention", "recurrent"])
def test_second_derivatives_of_attention_and_recurrent_layers(name: str) -> None:
    torch.manual_seed(0)
    net = LastOutput(3, 4, 2) if name == "recurrent" else nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    x = torch.randn(4, 5, 3 if name == "recurrent" else 4)
    data = Calibration(batches=[((x,), None)], loss=lambda out, _: out.square().mean())
    for values in score_weights(net, prunable_weights(net), "hvp", data).values():
        assert values.any()


def test_wanda_of_weights_by_hand() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(18, 3)
    )
    x = torch.randn(5, 2, 4, 4)
    hidden = net[1](net[0](x))
    last = net[3](net[2](hidden))
    scores = score_weights(net, dict(prunable_weights(net)), "wanda", Calibration(batches=[((x,), None)]))
    of_input, of_hidden = (v.square().sum((0, 2, 3)).sqrt() for v in (x, hidden))
    wanted = {
        "0.weight": net[0].weight.abs() * of_input.repeat_interleave(2).view(4, 1, 1, 1),
        "2.weight": net[2].weight.abs() * of_hidden.view(4, 1, 1, 1),
        "4.weight": net[4].weight.abs() * last.norm(dim=0),
    }
    for name, values in wanted.items():
        torch.testing.assert_close(scores[name], values.detach())


def test_expressions_are_weighted_ranks() -> None:
    data = calibration()
    joined = score_units(STRUCTURE, "0.25*l2 + 0.75*taylor", data)
    one, two = score_units(STRUCTURE, "l2", data), score_units(STRUCTURE, "taylor", data)
    for unit, values in joined.items():
        np.testing.assert_allclose(values, 0.25 * ranks(one[unit]) + 0.75 * ranks(two[unit]))
    np.testing.assert_array_equal(score_units(STRUCTURE, "2*l2", data)["c2"], one["c2"])  # one score keeps its values
    np.testing.assert_allclose(ranks(np.array([5.0, 1.0, 1.0, 7.0])), [2 / 3, 1 / 6, 1 / 6, 1])


@pytest.mark.parametrize("text", ["", "l2+", "0*l2", "-1*l2", "l2+l2", "nan*l2", "1.2.3*l2", "l2*0.5", "inf*l2"])
def test_expressions_that_cannot_be_are_one_message(text: str) -> None:
    with pytest.raises(UsageError, match=r"scores are a name, or different names with weights above 0, such as 0\.5"):
        score_units(STRUCTURE, text, calibration())


def test_names_that_are_unknown_in_an_expression_are_the_same_message() -> None:
    for text in ("l3", "0.5*l2+0.5*l3"):
        with pytest.raises(UsageError, match=r"unknown score 'l3'\. Known: activation, "):
            score_units(STRUCTURE, text, calibration())
    with pytest.raises(UsageError, match=r"unknown score 'fpgm'\. Known: fisher, gradient, hvp, l1"):
        score_weights(NET, {}, "fpgm")


@pytest.mark.parametrize("name", [*WEIGHT_SCORES, "magnitude+2*random"])
def test_scores_of_weights_are_finite_positive_and_repeatable(name: str) -> None:
    weights = prunable_weights(NET)
    first, again = (score_weights(NET, weights, name, calibration()) for _ in range(2))
    for weight, values in first.items():
        assert values.shape == weights[weight].shape
        assert bool((values >= 0).all())
        assert torch.equal(values, again[weight])
    assert len(first["c1.weight"].unique()) > 1


def test_random_follows_the_seed() -> None:
    one, two = (score_units(STRUCTURE, "random", calibration(seed))["c1"] for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_scores_leave_the_model_alone() -> None:
    before = {n: p.detach().clone() for n, p in NET.named_parameters()}
    score_units(STRUCTURE, "taylor", calibration())
    assert not NET.training
    for name, parameter in NET.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_bad_requests() -> None:
    for name in ("taylor", "fisher", "hvp", "gradient"):
        with pytest.raises(UsageError, match=f"{name}.*batches and a loss|taylor.*batches and a loss"):
            score_units(STRUCTURE, name)
        with pytest.raises(UsageError, match="batches and a loss"):
            score_weights(NET, prunable_weights(NET), name)
    with pytest.raises(UsageError, match="a Calibration with batches"):
        score_weights(NET, prunable_weights(NET), "wanda")


def test_weights_that_are_not_finite() -> None:
    net, inputs = make_net("chain")
    nn.init.constant_(net.get_parameter("c1.weight"), float("nan"))
    with pytest.raises(TaskError, match="not finite"):
        score_units(analyze(net, inputs), "l1")


def test_fpgm_knows_the_filters_of_transposed_convolutions_and_embeddings() -> None:
    torch.manual_seed(0)
    up = nn.Sequential(nn.Conv2d(1, 5, 1), nn.ReLU(), nn.ConvTranspose2d(5, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        up[2].weight[:] = 0.1
        up[2].weight[:, 2] = 5.0
    structure = analyze(up.eval(), (torch.zeros(1, 1, 4, 4),))
    scores = score_units(structure, "fpgm")
    assert np.argmax(scores["2"]) == 2
    filters = up[0].weight.detach().flatten(1)
    np.testing.assert_allclose(scores["0"], torch.cdist(filters, filters).sum(1).numpy(), rtol=1e-5)
    words = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)).eval()
    (values,) = score_units(analyze(words, (torch.zeros(1, 3, dtype=torch.long),)), "fpgm").values()
    filters = words[0].weight.detach().T
    np.testing.assert_allclose(values, torch.cdist(filters, filters).sum(1).numpy(), rtol=1e-5)


def test_fpgm_takes_a_depthwise_transposed_convolution_by_its_channels() -> None:
    torch.manual_seed(0)
    first, middle = nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=4)
    structure = analyze(nn.Sequential(first, middle, nn.Conv2d(4, 2, 1)).eval(), (torch.zeros(1, 1, 4, 4),))
    wanted = sum(torch.cdist(f, f).sum(1) for f in (m.weight.detach().flatten(1) for m in (first, middle)))
    (values,) = score_units(structure, "fpgm").values()
    np.testing.assert_allclose(values, wanted.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_a_plain_tensor_along_hidden_channels_is_no_obstacle(name: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
            self.gain = torch.linspace(0.5, 1.5, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(F.relu(self.first(x)) * self.gain)

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    data = Calibration(batches=[((x,), torch.zeros(8, dtype=torch.long))], loss=F.cross_entropy)
    (values,) = score_units(analyze(Scaled().eval(), (x[:1],)), name, data).values()
    assert values.shape == (6,)


def test_taylor_keeps_the_mode_of_every_module() -> None:
    net = make_net("residual")[0].train()
    net.get_submodule("b2").eval()
    before = {name: module.training for name, module in net.named_modules()}
    score_units(analyze(net, INPUTS), "taylor", calibration())
    assert {name: module.training for name, module in net.named_modules()} == before


def test_taylor_needs_a_parameter_that_is_not_frozen() -> None:
    net = make_net("residual")[0].requires_grad_(False)
    with pytest.raises(UsageError, match=r"all of this model's are frozen: call requires_grad_\(True\)"):
        score_units(analyze(net, INPUTS), "taylor", calibration())
