"""Least-squares reconstruction against closed forms and brute force on small nets."""

import pytest
import torch
from torch import nn

import autoprune
from autoprune.errors import PolicyError, TaskError, UsageError
from autoprune.records import Policy
from autoprune.recovery.batchnorm import recalibrate_on
from autoprune.recovery.consumers import covered_units, find_consumers
from autoprune.recovery.least_squares import Reconstruction
from autoprune.recovery.moments import collect_moments
from autoprune.recovery.recover import recover
from autoprune.recovery.surgeon import surgeon_order
from autoprune.structure import analyze


class Residual(nn.Module):
    """A stem, one residual block and a linear head: a stream with three readers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.outer = nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.norm(self.inner(x)))))
        return self.head(x.mean((2, 3)))


def mlp(hidden=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3)).eval()


def inputs_of(shape, batches=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn((32, *shape), generator=generator),) for _ in range(batches)]


def duplicated():
    """A hidden layer whose second half repeats the first: half of it can go without any loss."""
    model = mlp()
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[4:] = tensor[:4]
    return model


def difference(model, other, batches):
    with torch.no_grad():
        expected = torch.cat([model(*x) for x in batches])
        outputs = torch.cat([other(*x) for x in batches])
    return float((expected - outputs).square().mean() / expected.square().mean())


def repaired(structure, policy, batches):
    shrunk = structure.shrink(policy).eval()
    inputs = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    Reconstruction(structure=structure, inputs=inputs).apply(shrunk, structure.masks(policy))
    return shrunk


def test_the_solution_is_the_least_squares_fit_with_an_intercept():
    model, batches = mlp(), inputs_of((4,))
    structure = analyze(model, (batches[0][0][:1],))
    policy = Policy(space_id="", widths={"0": 5})
    shrunk = repaired(structure, policy, batches)
    hidden = torch.cat([torch.relu(model[0](x)) for (x,) in batches]).detach().double()
    design = torch.cat([hidden[:, :5], torch.ones(len(hidden), 1)], dim=1)
    wanted = model[2](hidden.float()).detach().double()
    best = torch.linalg.lstsq(design, wanted).solution
    outputs = torch.cat([shrunk(x) for (x,) in batches]).detach().double()
    least = (design @ best - wanted).square().mean()
    assert least <= (outputs - wanted).square().mean() < 1.01 * least
    assert torch.equal(shrunk.state_dict()["0.weight"], model[0].weight[:5])


def test_a_layer_makes_up_for_the_errors_of_those_before_it():
    """The last layer is the best fit on the activations that the pruned and repaired layers before it give."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    batches = inputs_of((4,), 16)
    structure = analyze(model, (batches[0][0][:1],))
    policy = Policy(space_id="", widths={"0": 4, "2": 6})
    shrunk = repaired(structure, policy, batches)
    x = torch.cat([b[0] for b in batches])
    with torch.no_grad():
        first = torch.relu(shrunk.get_submodule("0").weight @ x.T + shrunk.get_submodule("0").bias[:, None])
        second = torch.relu(shrunk.get_submodule("2").weight @ first + shrunk.get_submodule("2").bias[:, None]).T
        design = torch.cat([second, torch.ones(len(second), 1)], dim=1)
        best = design @ torch.linalg.lstsq(design, model(x)).solution
        assert (shrunk(x) - model(x)).square().mean() < 1.02 * (best - model(x)).square().mean()


def test_what_no_removed_channel_influences_stays():
    model = Residual().eval()
    batches = inputs_of((2, 8, 8))
    structure = analyze(model, (batches[0][0][:1],))
    policy = Policy(space_id="", widths=structure.full_widths | {"inner": 3})
    after = repaired(structure, policy, batches).state_dict()
    before = model.state_dict()
    assert torch.equal(after["stem.weight"], before["stem.weight"])
    assert torch.equal(after["inner.weight"], before["inner.weight"][:3])
    assert not torch.equal(after["outer.weight"], before["outer.weight"][:, :3])
    assert not torch.equal(after["head.weight"], before["head.weight"])
    dense = repaired(structure, structure.dense_policy(), batches).state_dict()
    assert all(torch.equal(dense[name], before[name]) for name in before)


def test_a_redundant_half_is_found_and_costs_nothing():
    model, batches = duplicated(), inputs_of((4,))
    shrunk = recover(model, {"0": 4}, batches)
    assert difference(model, shrunk, batches) < 1e-4
    assert difference(model, autoprune.prune(model, batches[0], keep=0.5, multiple_of=1), batches) > 0.01


def test_orders_are_permutations_and_pay_off_on_fresh_data():
    torch.manual_seed(0)
    model, batches = Residual(), inputs_of((2, 8, 8))
    recalibrate_on(model, (batches[0][0][:2],), batches)  # a trained net's statistics are those of its data
    structure = analyze(model, (batches[0][0][:1],))
    order = surgeon_order(structure, collect_moments(structure, batches), {})
    for unit in structure.units:
        assert sorted(order[unit.name]) == list(range(unit.width))
    fresh = [(torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(9)),)]
    policy = Policy(space_id="", widths={unit.name: 4 for unit in structure.units})
    plain = structure.shrink(policy, {n: o[:4] for n, o in order.items()}).eval()
    assert difference(model, recover(model, policy, batches), fresh) < 0.5 * difference(model, plain, fresh)


def test_every_reader_of_a_stream_is_a_consumer():
    model = Residual().eval()
    structure = analyze(model, (torch.zeros(1, 2, 8, 8),))
    centred = {c.weight: c.centred for c in find_consumers(structure)}
    assert centred == {"inner.weight": True, "outer.weight": True, "head.weight": True}
    assert len(covered_units(structure, [])) == 0


@pytest.mark.parametrize("groups", [2, 8])
def test_units_behind_grouped_and_depthwise_layers_are_covered(groups: int):
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, groups=groups), nn.Conv2d(8, 2, 1))
    structure = analyze(model.eval(), (torch.zeros(1, 1, 5, 5),))
    assert len(covered_units(structure, find_consumers(structure))) == len(structure.units)


def test_a_flattened_map_is_reconstructed_channel_by_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 3)).eval()
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = model[0].weight[:3].clone(), model[0].bias[:3].clone()
    batches = inputs_of((1, 5, 5))
    assert difference(model, recover(model, {"0": 3}, batches), batches) < 1e-3


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 3, 3, stride=2, padding=1),
        nn.Conv2d(4, 3, 3, padding="same"),
        nn.Conv2d(4, 3, (3, 2), dilation=(2, 1), padding=(2, 1)),
    ],
)
def test_moments_of_patches_reproduce_the_layer(convolution):
    """With W over patches, the variance of the output is W H W^T: checked against the layer's own outputs."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), convolution, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
    (x,) = inputs_of((1, 7, 7), 1)[0]
    model(x)
    structure = analyze(model, (x[:1],))
    moments = collect_moments(structure, [(x,)])["1.weight"]
    weight = convolution.weight.detach().double().flatten(1)
    outputs = (convolution(model[0](x)) - convolution.bias.reshape(-1, 1, 1)).detach().double()
    outputs = outputs.transpose(0, 1).flatten(1)
    assert torch.allclose(weight @ moments.raw @ weight.T, outputs @ outputs.T / outputs.shape[1], rtol=1e-4, atol=1e-5)
    assert torch.allclose(weight @ moments.mean, outputs.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_positions_are_taken_from_the_whole_map(side):
    """Inputs that equal their column and row: means and variances of a 1x1 layer's inputs are those of the map."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.LazyLinear(2)).eval()
    place = torch.arange(side, dtype=torch.float32) / side
    x = torch.stack([place.expand(side, side), place[:, None].expand(side, side)]).expand(128, 2, side, side)
    model(x[:1])
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2).reshape(2, 2, 1, 1))
    moments = collect_moments(analyze(model, (x[:1],)), [(x,)])["1.weight"]
    assert moments.mean == pytest.approx([0.5, 0.5], abs=0.04)
    assert moments.second(centred=True).diagonal() == pytest.approx([1 / 12, 1 / 12], rel=0.05)


def test_a_weight_that_is_no_parameter_and_a_shared_bias_are_left_alone():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 6)
            self.register_buffer("fixed", torch.randn(3, 6))
            self.other = nn.Linear(6, 3)

        def forward(self, x):
            hidden = torch.relu(self.first(x))
            return torch.nn.functional.linear(hidden, self.fixed, self.other.bias) + self.other(hidden)

    torch.manual_seed(0)
    model = Odd().eval()
    structure = analyze(model, (torch.zeros(1, 4),))
    (consumer,) = find_consumers(structure)
    assert (consumer.weight, consumer.bias, consumer.centred) == ("other.weight", None, False)
    batches = inputs_of((4,))
    assert difference(model, recover(model, {"first": 5}, batches), batches) < 1


def test_how_the_examples_are_batched_does_not_matter():
    torch.manual_seed(0)
    model = Residual().eval()
    (x,) = inputs_of((2, 8, 8), 1)[0]
    whole = recover(model, {"inner": 3}, [(x,)]).state_dict()
    parts = recover(model, {"inner": 3}, [(x[:31],), (x[31:],)]).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_removed_branch_is_made_up_for_by_what_follows():
    torch.manual_seed(0)
    model, batches = Residual(), inputs_of((2, 8, 8), 8)
    recalibrate_on(model, (batches[0][0][:2],), batches)
    structure = analyze(model, (batches[0][0][:1],))
    policy = Policy(space_id="", widths=structure.full_widths | {"inner": 0})
    plain, fitted = structure.shrink(policy).eval(), repaired(structure, policy, batches)
    assert "outer.weight" not in fitted.state_dict()
    assert torch.equal(fitted.state_dict()["stem.weight"], model.stem.weight)
    assert difference(model, fitted, batches) < 0.5 * difference(model, plain, batches)


def test_a_frozen_batch_norm_keeps_its_statistics():
    class Frozen(Residual):
        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    torch.manual_seed(0)
    model = Frozen().eval()
    batches = inputs_of((2, 8, 8))
    structure = analyze(model, (batches[0][0][:1],))
    assert {c.weight: c.centred for c in find_consumers(structure)}["inner.weight"] is False
    after = repaired(structure, Policy(space_id="", widths=structure.full_widths | {"stem": 3}), batches).state_dict()
    assert torch.equal(after["norm.running_var"], model.norm.running_var)


def test_one_dimensional_convolutions_are_reconstructed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = model[0].weight[:3].clone(), model[0].bias[:3].clone()
    batches = inputs_of((2, 12))
    assert difference(model.eval(), recover(model.eval(), {"0": 3}, batches), batches) < 1e-3


def test_batches_are_tensors_tuples_or_dicts_of_them():
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(64, 4)
    wanted = recover(model, {"0": 4}, [(x,)]).state_dict()
    for batches in ([x], [x[:30], [x[30:]]], [{"input": x[:30]}, {"input": x[30:]}]):
        repeated = recover(model, {"0": 4}, batches).state_dict()
        assert all(torch.equal(value, repeated[name]) for name, value in wanted.items())


def test_bad_calls_say_what_is_wrong():
    with pytest.raises(UsageError, match="at least one batch"):
        recover(mlp(), {"0": 4}, [])
    with pytest.raises(UsageError, match=r"tuple or dict of input tensors; got ndarray"):
        recover(mlp(), {"0": 4}, [torch.zeros(3, 4).numpy()])
    with pytest.raises(UsageError, match=r"are a list of batches; got one Tensor"):
        recover(mlp(), {"0": 4}, torch.zeros(3, 4))
    with pytest.raises(UsageError, match=r"forward takes \(1\), without targets; got 2 tensors"):
        recover(mlp(), {"0": 4}, [(torch.zeros(3, 4), torch.zeros(3))])
    with pytest.raises(UsageError, match=r"are equally long; got \[\(3, 4\), \(2,\)\]"):
        recover(mlp(), {"0": 4}, [(torch.zeros(3, 4), torch.zeros(2))])
    with pytest.raises(UsageError, match="all batches hold the same inputs"):
        recover(mlp(), {"0": 4}, [{"input": torch.zeros(3, 4)}, {"x": torch.zeros(3, 4)}])
    with pytest.raises(UsageError, match=r"more digits than torch.bfloat16 has: recover model.float\(\)"):
        recover(mlp().bfloat16(), {"0": 4}, [torch.zeros(3, 4).bfloat16()])
    with pytest.raises(TaskError, match=r"the input of '2.weight' is not"):
        recover(mlp(), {"0": 4}, [(torch.full((3, 4), float("nan")),)])
    with pytest.raises(PolicyError, match="no unit nope; it has 0"):
        recover(mlp(), {"nope": 4}, inputs_of((4,)))
    with pytest.raises(PolicyError, match="1 to 8; got 9"):
        recover(mlp(), {"0": 9}, inputs_of((4,)))
