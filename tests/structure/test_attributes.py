"""Whole numbers of modules follow the widths, however a module holds them."""

import dataclasses
import enum
import logging
import types
from typing import NamedTuple

import pytest
import torch
from torch import nn

from autoprune.errors import StructureError
from autoprune.pruning import prune
from autoprune.structure import analyze
from autoprune.structure.attributes import Attribute, numbers_of_modules, set_values, values_of

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Shape(NamedTuple):
    batch: int
    width: int


@dataclasses.dataclass(frozen=True)
class Frozen:
    width: int = 12


class Net(nn.Module):
    """Shapes its features by a number that it holds somewhere."""

    def __init__(self, width, **held):
        super().__init__()
        self.first, self.last, self.width = nn.Conv2d(3, 12, 3), nn.Linear(12, 2), width
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).mean((2, 3)).view(-1, self.width(self)))


class OfClass(Net):
    """Its class holds the number."""

    channels = 12


HELD = {
    "number": lambda: Net(lambda net: net.n, n=12),
    "tuple": lambda: Net(lambda net: net.shape[1], shape=(-1, 12)),
    "named tuple": lambda: Net(lambda net: net.shape.width, shape=Shape(-1, 12)),
    "list": lambda: Net(lambda net: net.stages[2], stages=[7, 7, 12]),
    "dictionary": lambda: Net(lambda net: net.settings["out"]["width"], settings={"out": {"width": 12}}),
    "namespace": lambda: Net(lambda net: net.settings.width, settings=types.SimpleNamespace(width=12)),
    "frozen dataclass": lambda: Net(lambda net: net.settings.width, settings=Frozen()),
    "class": lambda: OfClass(lambda net: net.channels),
}


@pytest.mark.parametrize("make", HELD.values(), ids=list(HELD))
def test_numbers_that_a_forward_reads_follow(make):
    model = make()
    before = {attribute: value for _, attribute, value in numbers_of_modules(model)}
    small = prune(model, X, multiple_of=1)
    assert small.pruned_to.form == "native", small.pruned_to.reason
    assert small(X).shape == (2, 2)
    assert values_of(model, before) == before
    assert 6 in values_of(small, before).values()


class Kind(enum.Enum):
    TWELVE = 12


class Shared:
    """A setting for all models, of which there are no copies."""

    def __init__(self):
        self.width = 12

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize(
    ("held", "read"),
    [
        (Kind.TWELVE, lambda held: held.value),
        (Shared(), lambda held: held.width),
        ([Shared()], lambda held: held[0].width),
        (logging.LoggerAdapter(logging.getLogger("widths"), {"width": 12}), lambda held: held.extra["width"]),
    ],
    ids=["enum", "no copies", "no copies in a list", "logger"],
)
def test_numbers_that_a_copy_shares_with_the_model_stay(held, read, monkeypatch):
    logger = logging.getLogger("widths")
    monkeypatch.setattr(logger, "level", 12)
    model, touched = Net(lambda net: net.n if net.last.in_features == net.n else 5, n=12, held=held, log=logger), []
    monkeypatch.setattr(Shared, "__setattr__", lambda *a: touched.append(a), raising=False)
    small = prune(model, X, multiple_of=1)
    assert small.pruned_to.form == "native", small.pruned_to.reason
    assert small.n == 6
    assert read(held) == 12
    assert logger.level == 12
    assert not touched


def test_numbers_of_removed_modules_are_left_out():
    model = Net(lambda net: 12)
    absent = Attribute("first.conv", ("width",))
    set_values(model, {absent: 3})
    assert values_of(model, [absent]) == {}


class Unflattening(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.grid = nn.Linear(48, 32), nn.Unflatten(1, (8, 2, 2))
        self.last = nn.Conv2d(8, 2, 2)

    def forward(self, x):
        return self.last(torch.relu(self.grid(self.first(x.flatten(1)))))


class Listed(nn.Module):
    """Holds parameters in a plain list, and a constant in an attribute."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 1), nn.Linear(12, 2)
        self.held, self.scale = [self.second.weight, self.second.bias], torch.rand(12, 1, 1)

    def forward(self, x):
        return self.last(torch.relu(torch.conv2d(self.first(x) * self.scale, *self.held)).mean((2, 3)))


@pytest.mark.parametrize("build", [Unflattening, Listed])
def test_layers_and_tensors_that_a_module_holds_follow(build):
    small = prune(build(), X, multiple_of=1)
    assert small.pruned_to.form == "native", small.pruned_to.reason
    small.train()(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("name", ["meta", "graph", "code", "sizes", "captures"])
def test_a_part_that_is_called_like_an_attribute_of_graphs_is_refused(name):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(4, 8))
    model.add_module("head", nn.Linear(8, 2))
    with pytest.raises(StructureError, match=f"a part called `{name}`, .* such as `{name}_net`"):
        analyze(model, torch.randn(2, 4))
