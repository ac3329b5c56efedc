"""2:4 weights for devices that multiply them: tried where the device takes them, one message elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import autoprune
from autoprune.errors import UsageError


def sparse_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 2))
    return autoprune.sparsify(net, pattern="2:4")


def test_layers_that_the_device_takes_are_converted_and_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparse_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def convert(weight: torch.Tensor) -> torch.Tensor:
        if weight.shape[0] % 16:
            raise RuntimeError("Error original_tensor.shape is not supported!")
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    made = autoprune.to_semi_structured(model, "cpu")
    assert [layer.weight.requires_grad for layer in made if isinstance(layer, nn.Linear)] == [False, True, True]
    x = torch.randn(3, 8)
    assert torch.equal(made(x), model(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", "cuda:77", "meta"])
def test_devices_without_such_kernels_are_refused_in_one_message(device: str) -> None:
    with pytest.raises(UsageError, match=f"no 2:4 kernel for these layers on {device} "):
        autoprune.to_semi_structured(sparse_net(), device)


def test_models_without_such_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="has 2:4 weights; make some with"):
        autoprune.to_semi_structured(nn.Linear(8, 4), "cpu")
