"""Zeros among weights: chosen and made up for by the inputs that a layer sees."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from autoprune.errors import TrialError
from autoprune.quantization.grid import rounded_blocks, weight_scales
from autoprune.recovery import recurrent_fit, weight_fitting
from autoprune.recovery.moments import Moments
from autoprune.recovery.optimal_rounding import InputMoments, on_block_grids, rounded_by_moments
from autoprune.recovery.sparse import make_sparse
from autoprune.recovery.weight_fitting import fit_in_place, sparse_weight
from autoprune.sparsity.masks import pattern_mask
from autoprune.sparsity.patterns import Pattern
from autoprune.structure import analyze
from tests.small_nets import LastOutput
from tests.structure.recurrent_nets import FEATURES, STEPS, make_recurrent


def normal(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def correlated(count: int, size: int) -> torch.Tensor:
    return normal(count, size) * torch.logspace(0, -2, size) @ torch.linalg.qr(normal(size, size, seed=1))[0]


def pattern_of(text: str) -> Pattern:
    pattern = Pattern.parse(text)
    assert pattern is not None
    return pattern


def sparse_fit(weight, rows, target, pattern, groups=1, *, centred):
    return fit_in_place(weight, rows, target, partial(sparse_weight, zeros=pattern), groups, centred=centred)


@pytest.mark.parametrize("text", ["sparse:50%", "sparse:80%", "2:4", "1:4", "sparse:50%@4x1", "2:4@2x1"])
@pytest.mark.parametrize("most_columns", [2304, 10])
def test_outputs_change_less_than_by_the_smallest_weights(text, most_columns, monkeypatch):
    monkeypatch.setattr(weight_fitting, "MOST_COLUMNS", most_columns)
    weight, rows, pattern = normal(8, 16, seed=2), correlated(400, 16) * torch.linspace(0.1, 3, 16), pattern_of(text)
    smallest, fitted = weight * pattern_mask(weight.abs(), pattern), weight.clone()
    sparse_fit(fitted, rows, rows @ weight.mT, pattern, centred=False)
    assert int((fitted != 0).sum()) == pattern.nonzeros(8, 16)
    lost = [float((rows @ (weight - other).mT).square().mean()) for other in (fitted, smallest)]
    assert lost[0] < (0.5 if most_columns == 2304 else 1.0) * lost[1]


def test_few_rows_do_not_overrule_the_weights():
    """With fewer rows than inputs a plain fit is right on the rows it saw, and worse than no fit on others."""
    rows, unseen, weight = normal(24, 96, seed=1), normal(4000, 96, seed=2), normal(8, 96, seed=3)
    noise = 0.5 * normal(24, 8, seed=4)  # of the inputs, which earlier layers changed
    smallest, fitted = weight * pattern_mask(weight.abs(), pattern_of("sparse:50%")), weight.clone()
    sparse_fit(fitted, rows, rows @ weight.mT + noise, pattern_of("sparse:50%"), centred=False)
    error, of_smallest = (((unseen @ (each - weight).mT) ** 2).mean() for each in (fitted, smallest))
    assert error < 1.25 * of_smallest


def test_groups_of_a_convolution_and_a_bias_are_fitted():
    weight, rows, shift = normal(6, 3, 3, seed=2), normal(300, 18), torch.arange(6.0)
    by_group = [rows[:, 9 * g : 9 * g + 9] @ weight[3 * g : 3 * g + 3].flatten(1).mT for g in (0, 1)]
    fitted = weight.clone()
    bias = sparse_fit(fitted, rows, torch.cat(by_group, 1) + shift, pattern_of("sparse:0.01%"), 2, centred=True)
    torch.testing.assert_close(fitted, weight, atol=0.05, rtol=0.05)
    torch.testing.assert_close(bias, shift, atol=0.05, rtol=0.05)


def test_layers_of_a_model_make_up_for_those_before_them():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    inputs = normal(64, 3, 6, 6).cumsum(-1)
    structure = analyze(net.eval(), inputs[:1])
    dense = structure.shrink(structure.dense_policy()).eval()
    pattern = pattern_of("sparse:60%")
    patterns = dict.fromkeys(("0.weight", "3.weight", "6.weight"), pattern)
    made, smallest = copy.deepcopy(dense), copy.deepcopy(dense)
    make_sparse(made, patterns, [inputs])
    for name in patterns:
        weight = smallest.get_parameter(name)
        weight.data *= pattern_mask(weight.abs(), pattern)
        assert int((made.get_parameter(name) != 0).sum()) == int((weight != 0).sum())
    with torch.no_grad():
        lost = [float((model(inputs) - dense(inputs)).square().mean()) for model in (made, smallest)]
    assert lost[0] < 0.5 * lost[1]


RECURRENT = [("LSTM", {}), ("GRU", {"bidirectional": True, "batch_first": False}), ("RNN", {"bias": False})]


@pytest.mark.parametrize(("kind", "features"), RECURRENT)
@pytest.mark.parametrize("most_columns", [2304, 4])
def test_gates_of_a_recurrent_layer_make_up_for_its_zeros(kind, features, most_columns, monkeypatch):
    monkeypatch.setattr(recurrent_fit, "MOST_COLUMNS", most_columns)
    net, _ = make_recurrent(kind, **features)
    inputs = correlated(64 * STEPS, FEATURES).reshape(64, STEPS, FEATURES) * 3
    structure = analyze(net, inputs[:1])
    dense = structure.shrink(structure.dense_policy()).eval()
    names = [name for name, _ in dense.named_parameters() if ".weight_" in name]
    patterns = dict.fromkeys(names, pattern_of("sparse:50%"))
    made, smallest = make_sparse(copy.deepcopy(dense), patterns, [inputs]), copy.deepcopy(dense)
    for name in names:
        weight = smallest.get_parameter(name)
        weight.data *= pattern_mask(weight.abs(), patterns[name])
        assert int((made.get_parameter(name) != 0).sum()) == int((weight != 0).sum())
    with torch.no_grad():
        lost = [float((model(inputs) - dense(inputs)).square().mean()) for model in (made, smallest)]
    assert lost[0] < (0.5 if most_columns == 2304 else 1.0) * lost[1]


def test_masks_of_a_recurrent_layer_say_which_weights_stay():
    net, inputs = make_recurrent("LSTM")
    structure = analyze(net, inputs)
    model = structure.shrink(structure.dense_policy()).eval()
    name = next(name for name, _ in model.named_parameters() if "weight_hh" in name)
    mask = normal(*model.get_parameter(name).shape) > 0.5
    make_sparse(model, {name: mask}, [normal(32, STEPS, FEATURES)])
    assert torch.equal(model.get_parameter(name) != 0, mask)
    others = [other for other, _ in model.named_parameters() if "weight_ih" in other]
    assert all(bool((model.get_parameter(other) != 0).all()) for other in others)


def test_a_recurrent_layer_makes_up_for_the_layer_before_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), LastOutput(8, 6, 2)).eval()
    inputs = correlated(64 * 5, 8).reshape(64, 5, 8) * 3
    structure = analyze(net, inputs[:1])
    dense = structure.shrink(structure.dense_policy()).eval()
    pattern = pattern_of("sparse:60%")
    made, alone = make_sparse(copy.deepcopy(dense), {"0.weight": pattern}, [inputs]), copy.deepcopy(dense)
    alone.load_state_dict(dense.state_dict() | {k: v for k, v in made.state_dict().items() if k.startswith("0.")})
    with torch.no_grad():
        lost = [float((model(inputs) - dense(inputs)).square().mean()) for model in (made, alone)]
    assert lost[0] < 0.9 * lost[1]


def test_gates_whose_inputs_are_not_finite_are_an_error():
    structure = analyze(LastOutput(4, 4, 2).eval(), normal(1, 3, 4))
    model = structure.shrink(structure.dense_policy()).eval()
    with pytest.raises(TrialError, match="of a recurrent layer"):
        make_sparse(model, {"lstm.weight_ih_l0": pattern_of("2:4")}, [normal(8, 3, 4) / 0])


def test_a_large_weight_that_others_could_replace_outlasts_a_small_one():
    """The second and third input are the same, so that either costs less than the first weight when it goes."""
    rows = normal(256, 2)[:, [0, 1, 1]]
    weight = torch.tensor([[0.35, 1.0, 1.0]])
    fitted = weight.clone()
    sparse_fit(fitted, rows, rows @ weight.mT, pattern_of("sparse:34%"), centred=False)
    assert (fitted != 0).tolist() == [[False, True, True]]


def test_inputs_that_are_not_finite_are_an_error():
    with pytest.raises(TrialError, match="activations must be finite"):
        sparse_fit(normal(2, 4), normal(8, 4) / 0, normal(8, 2), pattern_of("2:4"), centred=False)


def test_rounding_keeps_zeros():
    rows, weight = correlated(256, 64), normal(8, 64, seed=2)
    weight *= pattern_mask(weight.abs(), pattern_of("2:4"))
    moments = Moments(mean=rows.mean(0)[None].double(), raw=(rows.mT @ rows / 256)[None].double())
    both, numbers = InputMoments(fitted=moments, held_out=moments), weight.numpy()
    steps = rounded_by_moments(numbers, 4 * weight_scales(numbers, None, 1.0), both, centred=False)
    assert (steps[numbers == 0] == 0).all()
    assert (on_block_grids(numbers, 4, both)[numbers == 0] == 0).all()
    assert (rounded_blocks(numbers, 4).values[numbers == 0] == 0).all()
