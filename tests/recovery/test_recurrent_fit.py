"""Recurrent layers with zeros, or behind layers with zeros, are fitted to the sums of their gates."""

import copy

import pytest
import torch
from torch import nn

from autoprune.errors import TrialError
from autoprune.recovery import recurrent_fit
from autoprune.recovery.sparse import make_sparse
from autoprune.sparsity.masks import pattern_mask
from autoprune.structure import analyze
from tests.recovery.zeros import correlated, normal, pattern_of
from tests.small_nets import LastOutput
from tests.structure.recurrent_nets import FEATURES, STEPS, make_recurrent

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
