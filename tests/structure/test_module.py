from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autoprune.pruning import prune
from autoprune.records import Policy
from autoprune.structure import GraphModel, analyze
from tests.nets import make_net


def shrunk(name: str, **widths: int) -> tuple[GraphModel, tuple[torch.Tensor, ...]]:
    net, inputs = make_net(name)
    structure = analyze(net, inputs)
    return structure.shrink(Policy(space_id="", widths=structure.full_widths | widths)), inputs


def test_a_copy_is_independent() -> None:
    model, inputs = shrunk("chain", c1=3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("c1.weight").zero_()
        assert not torch.equal(model(*inputs), other(*inputs))


def test_weights_load_under_the_original_names() -> None:
    model, inputs = shrunk("residual", c2=2)
    other, _ = shrunk("residual", c2=2)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(*inputs), other(*inputs))


def test_moving_and_converting_reach_buffers_too() -> None:
    model, inputs = shrunk("chain", c1=3)
    model.double()
    assert model(*(x.double() for x in inputs)).dtype == torch.float64


class OwnTypes(nn.Module):
    """A recurrent layer, which makes its first state, and a norm in float32, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.scale, self.head = nn.GRU(8, 6), nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.recurrent(x)[0]
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.head(self.scale * y.to(x.dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3), (torch.float64, 1e-5)])
def test_types_that_a_graph_holds_follow_the_parameters(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    model = prune(OwnTypes(), (x,), multiple_of=1).eval()
    wanted = model(x)
    converted = copy.deepcopy(model).to(dtype)
    assert converted(x.to(dtype)).dtype == dtype
    assert torch.allclose(converted(x.to(dtype)).float(), wanted, atol=tolerance)
    assert converted.train()(x.to(dtype)).dtype == dtype
    assert torch.allclose(converted.float().eval()(x), wanted, atol=tolerance)
    assert torch.equal(model(x), wanted)  # the original is left alone


def test_outputs_nest_as_those_of_the_dense_model() -> None:
    model, inputs = shrunk("viewed", a=2)
    assert {name: tuple(t.shape) for name, t in model(*inputs).items()} == {"scores": (2, 3), "sum": (2,)}
    assert model.input_names == ("x", "y")


def test_any_batch_size_runs_in_both_modes() -> None:
    model, inputs = shrunk("dense", a=2)
    for mode in (True, False):
        model.train(mode)
        for batch in (1, 5):
            x = inputs[0][:1].expand(batch, -1, -1, -1)
            assert model(x).shape == (batch, 3)
