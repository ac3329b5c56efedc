from functools import cache

import pytest
import torch

from autoprune.latency.onnx_model import export_onnx
from autoprune.latency.target import make_target
from autoprune.records import SearchSpace
from autoprune.structure import analyze
from tests.latency.nets import NETS


@cache
def _structure(name):
    torch.manual_seed(0)
    return analyze(NETS[name]().eval(), (torch.randn(1, 1, 8, 8),))


@cache
def _dense(name):
    structure = _structure(name)
    return export_onnx(structure.model, structure.example_inputs)


@pytest.fixture(params=NETS)
def net(request):
    """Name of each tiny net in turn."""
    return request.param


@pytest.fixture
def structure_of():
    return _structure


@pytest.fixture
def dense_of():
    return _dense


@pytest.fixture
def space_of():
    def build(name):
        units = _structure(name).units
        return SearchSpace(id=f"space-{name}", levels={u.name: tuple(range(2, u.width + 1, 2)) for u in units})

    return build


@pytest.fixture(scope="session")
def target():
    return make_target("ort-cpu")
