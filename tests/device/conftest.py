"""Models that several tests measure on another host."""

import pytest

from autoprune.onnxgraph.resizer import Resizer


@pytest.fixture(scope="module")
def models(structure_of, dense_of, space_of):
    """The dense model, and three smaller ones."""
    resizer = Resizer(dense_of("flat"), structure_of("flat"))
    levels = space_of("flat").levels
    policies = [space_of("flat").policy({name: ls[i] for name, ls in levels.items()}) for i in range(3)]
    return [dense_of("flat").SerializeToString(), *map(resizer.resize, policies)]
