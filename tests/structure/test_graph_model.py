"""Everything that the documentation promises of a graph module."""

import copy

import pytest
import torch
from torch import nn

from autoprune.pruning import prune

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 3)
    )
    return prune(model, (X,), multiple_of=1, native=False)


def test_it_trains_and_has_the_modes_of_the_model(small):
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    before = small.get_buffer("1.running_mean").clone()
    assert not torch.equal(small.train()(X), small(X))
    first = small(X).square().mean()
    first.backward()
    optimizer.step()
    assert all(p.grad is not None for p in small.parameters())
    assert not torch.equal(small.get_buffer("1.running_mean"), before)
    assert torch.equal(small.eval()(X), small(X))


def test_it_has_the_state_dict_names_of_the_model(small):
    names = {"0.weight", "0.bias", "5.weight", "5.bias", "1.num_batches_tracked"}
    names |= {f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    assert small.state_dict().keys() == names


def test_it_copies(small):
    twin = copy.deepcopy(small)
    nn.init.zeros_(twin.get_parameter("5.weight"))
    assert not torch.equal(twin.eval()(X), small.eval()(X))
    assert twin.pruned_to == small.pruned_to


def test_it_exports(small):
    program = torch.export.export(small.eval(), (X,))
    torch.testing.assert_close(program.module()(X), small(X))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_compiles(small):
    compiled = torch.compile(small.eval(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), small(X))


def test_it_changes_its_number_format(small):
    assert small.eval().to(torch.bfloat16)(X.bfloat16()).dtype == torch.bfloat16
    assert small.double()(X.double()).dtype == torch.float64


def test_it_can_be_pruned_again(small):
    again = prune(small, (X,), multiple_of=1)
    assert again.get_parameter("0.weight").shape[0] == 2


def test_inputs_by_position_or_name(small):
    (name,) = small.input_names
    assert torch.equal(small.eval()(**{name: X}), small(X))
    with pytest.raises(TypeError, match=f"takes the inputs {name}; got other"):
        small(other=X)
