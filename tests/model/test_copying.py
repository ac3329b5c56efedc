"""Copies of modules whose attributes hold what `copy.deepcopy` refuses, or methods of the module itself."""

import threading
import types

import pytest
import torch
from torch import nn

from autoprune.errors import StructureError
from autoprune.model.adapters import adapted
from autoprune.model.copying import copy_of


class Net(nn.Module):
    """Scales its layer's output, and may hold anything."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.calls = 0

    def forward(self, x):
        return self.layer(x)

    def count(self, *_):
        self.calls += 1


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_objects_that_cannot_be_copied_are_shared_and_tensors_lose_their_history():
    net = Net()
    net.lock, net.lines = threading.Lock(), (line for line in "ab")
    net.features, net.cached = [net(X)], net.layer.weight * 2
    copied = copy_of(net)
    assert copied.lock is net.lock
    assert copied.lines is net.lines
    assert copied.layer.weight is not net.layer.weight
    assert copied.features is not net.features
    assert torch.equal(copied.features[0], net.features[0])
    assert copied.cached.is_leaf
    assert not net.cached.is_leaf


def test_hooks_of_parameters_follow():
    net = Net()
    net.layer.weight.register_hook(lambda gradient: 0 * gradient)
    copied = copy_of(net)
    copied(X).sum().backward()
    assert not copied.layer.weight.grad.any()
    assert copied.layer.bias.grad.all()


@pytest.mark.parametrize("keywords", [(), ("x",)], ids=["model", "view"])
def test_methods_of_the_model_become_those_of_the_copy(keywords):
    net = Net()
    net.layer.register_forward_hook(net.count)
    net.again = types.MethodType(lambda self: self.training, net)
    copied = copy_of(adapted(net, keywords)).eval()
    copied(X)
    assert (net.calls, copied.calls) == (0, 1)
    assert not copied.again()


def test_a_tensor_is_replaced_wherever_it_is_held():
    net, new = Net(), nn.Parameter(torch.zeros(5, 3))
    net.held = {"weights": [net.layer.weight]}
    copied = copy_of(net, {id(net.layer.weight): new})
    assert copied.held["weights"][0] is copied.layer.weight is new


def test_a_model_that_refuses_to_be_copied_is_named():
    class Unique(Net):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is only one")

    with pytest.raises(StructureError, match=r"cannot be copied .*there is only one"):
        copy_of(Unique())
