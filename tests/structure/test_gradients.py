"""A pruned model trains with the gradients of its model, or is refused by name."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autoprune.errors import StructureError
from autoprune.pruning import prune
from tests.backwards import Reversed

X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))


class Signs(torch.autograd.Function):
    """Signs whose gradient passes straight through."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Net(nn.Module):
    """Two convolutions and a head, with something between them."""

    def __init__(self, between=lambda layer, x: torch.relu(layer(x)), after=lambda x: x):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Linear(12, 2)
        self.between, self.after = between, after

    def forward(self, x):
        features = self.after(self.between(self.b, torch.relu(self.a(x))))
        return self.head(features.mean((2, 3)))


def scaled_by_a_tensor_hook(x):
    if x.requires_grad:
        x.register_hook(lambda gradient: 3 * gradient)
    return x


def without_gradients(layer, x):
    with torch.inference_mode():
        features = layer(x)
    return features.clone()


def with_a_module_hook():
    model = Net()
    model.b.register_full_backward_hook(lambda module, inward, outward: tuple(2 * g for g in inward))
    return model


def with_a_parameter_hook():
    model = Net()
    model.a.weight.register_hook(lambda gradient: 5 * gradient)
    return model


LOST = {
    "reversal": lambda: Net(after=Reversed.apply),
    "straight through": lambda: Net(after=Signs.apply),
    "hook of a tensor": lambda: Net(after=scaled_by_a_tensor_hook),
    "hook of a module": with_a_module_hook,
    "hook of a parameter": with_a_parameter_hook,
    "inference mode": lambda: Net(without_gradients),
    "checkpoint, reentrant": lambda: Net(lambda layer, x: checkpoint(layer, x, use_reentrant=True)),
}
KEPT = {
    "checkpoint": lambda: Net(lambda layer, x: checkpoint(layer, x, use_reentrant=False)),
    "rounded, detached": lambda: Net(after=lambda x: x + (x.round() - x).detach()),
}


def gradients(model):
    model.zero_grad()
    model.train()(X).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [*LOST.values(), *KEPT.values()], ids=[*LOST, *KEPT])
def test_the_gradients_stay_those_of_the_model(make):
    torch.manual_seed(0)
    model = make()
    whole = prune(model, X[:1], keep=1.0)
    torch.testing.assert_close(gradients(whole), gradients(model))
    small = prune(model, X[:1], multiple_of=1)
    assert small.pruned_to.form == "native"
    # A cut model has the gradients of the dense model whose removed channels are zero.
    for name, kept in small.pruned_to.kept.items():
        gone = [channel for channel in range(12) if channel not in kept]
        reader = model.b if name == "a" else model.head
        with torch.no_grad():
            model.get_submodule(name).weight[gone] = 0
            model.get_submodule(name).bias[gone] = 0
            reader.weight[:, gone] = 0
    own, dense = gradients(small), gradients(model)
    kept = list(small.pruned_to.kept["a"])
    if "a.weight" in dense and make is not LOST["straight through"]:
        torch.testing.assert_close(own["a.weight"], dense["a.weight"][kept])
    assert own.keys() == dense.keys()


@pytest.mark.parametrize("make", LOST.values(), ids=list(LOST))
def test_a_graph_with_other_gradients_is_refused(make):
    with pytest.raises(StructureError, match="does not compute the gradients of the model"):
        prune(make(), X[:1], native=False)


def test_the_message_names_the_function_and_why_own_classes_do_not_do():
    def fixed(layer, x):
        return Reversed.apply(layer(x).mean((2, 3)).reshape(-1, 12)[..., None, None])

    with pytest.raises(StructureError, match=r"the autograd function Reversed\. .* no pruned form: .* does not run"):
        prune(Net(fixed), X[:1], multiple_of=1)
    with pytest.raises(StructureError, match="a backward hook of b"):
        prune(with_a_module_hook(), X[:1], native=False)


class Heads(nn.Module):
    """Attention that holds its number of heads, and numbers that only look like sizes."""

    def __init__(self):
        super().__init__()
        self.heads, self.rounds, self.dim = 4, 2, 32
        self.qkv, self.out = nn.Linear(16, 96, bias=False), nn.Linear(32, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        for _ in range(self.rounds):
            mixed = mixed / 2
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], self.dim))


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.attention, self.head = nn.Linear(8, 16), Heads(), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.attention(self.inward(x)))


def test_whole_numbers_of_modules_follow_the_widths():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Blocks().eval()
    # The default scale of attention follows the width of a head, so heads alone are cut.
    small, graph = (
        prune(model, x, multiple_of=1, choose=lambda unit: "#" not in unit, native=native) for native in (None, False)
    )
    assert small.pruned_to.form == "native", small.pruned_to.reason
    torch.testing.assert_close(small(x), graph(x))
    assert small.attention.dim == small.attention.out.in_features < 32
    assert small.attention.rounds == 2
    assert (model.attention.heads, model.attention.dim) == (4, 32)


def test_the_reason_for_a_graph_is_kept():
    class Fixed(Net):
        def forward(self, x):
            return self.head(torch.relu(self.b(self.a(x))).mean((2, 3)).reshape(-1, 12))

    small = prune(Fixed(), X[:1], multiple_of=1)
    assert small.pruned_to.form == "graph"
    assert "does not run at the pruned sizes" in small.pruned_to.reason
