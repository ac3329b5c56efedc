from functools import cache

import numpy as np
import pytest
import torch

from autoprune.device.connect import make_target
from autoprune.onnxgraph.export import export_onnx
from autoprune.records import SearchSpace
from autoprune.structure import analyze
from autoprune.treatments import DENSE, INT8
from tests.machines import AdditiveMachine, simulated_table
from tests.small_nets import MIXED, NETS


@cache
def _structure(name):
    torch.manual_seed(0)
    if name in MIXED:
        build, shape = MIXED[name]
        return analyze(build().eval(), (torch.randn(shape),))
    return analyze(NETS[name]().eval(), (torch.randn(1, 1, 8, 8),))


@cache
def _dense(name):
    structure = _structure(name)
    return export_onnx(structure.model, structure.example_inputs)


@cache
def _space(name, step=2):
    units = _structure(name).units
    return SearchSpace(id=f"space-{name}", levels={u.name: tuple(range(step, u.width + 1, step)) for u in units})


@cache
def _removing_space(name, step=2):
    units, levels = _structure(name).units, dict(_space(name, step).levels)
    return SearchSpace(id=f"removing-{name}", levels={u.name: (0,) * u.removable + levels[u.name] for u in units})


@cache
def _treated_space(name, step=2):
    layers = {layer.name: (INT8, DENSE) for layer in _structure(name).layers if layer.allows(INT8)}
    return SearchSpace(id=f"treated-{name}", levels={**_removing_space(name, step).levels, **layers})


@cache
def _treated_table():
    structure, space = _structure("residual"), _treated_space("residual")
    machine = AdditiveMachine(structure, noise=0.003, layers=space.layer_names)
    return simulated_table(machine, space, _target())


@cache
def _target():
    return make_target("ort-cpu")


@cache
def _table():
    machine = AdditiveMachine(_structure("residual"), noise=0.003)
    return simulated_table(machine, _space("residual"), _target())


@pytest.fixture
def treated_table():
    """A table of `residual` whose layers may be in int8, on a simulated machine with 0.3 % noise."""
    return _treated_table()


@pytest.fixture(params=NETS)
def net(request):
    """Name of each tiny net in turn."""
    return request.param


@pytest.fixture(scope="session")
def structure_of():
    return _structure


@pytest.fixture(scope="session")
def dense_of():
    return _dense


@pytest.fixture(scope="session")
def space_of():
    return _space


@pytest.fixture(scope="session")
def removing_space_of():
    """As `space_of`, with width 0 where a branch can be removed."""
    return _removing_space


@pytest.fixture(scope="session")
def treated_space_of():
    """As `removing_space_of`, with every layer in fp32 or int8."""
    return _treated_space


@pytest.fixture(scope="session")
def target():
    return _target()


@pytest.fixture
def table():
    """A table of `residual` on a simulated machine with 0.3 % noise."""
    return _table()


@pytest.fixture(scope="session")
def feeds():
    """The input of the tiny nets."""
    return [np.random.default_rng(0).standard_normal((1, 1, 8, 8), dtype=np.float32)]
