import numpy as np
import pytest

from autoprune.latency.geometries import priced_operators
from autoprune.latency.node_times import NodeOwners, node_times_ms
from autoprune.latency.onnx_model import Resizer


def test_every_priced_operator_gets_node_times(net, structure_of, dense_of, space_of, target):
    structure, dense = structure_of(net), dense_of(net)
    priced = priced_operators(structure.operators)
    model = Resizer(dense, structure).resize(space_of(net).smallest())
    feeds = [np.zeros((1, 1, 8, 8), np.float32)]
    times = node_times_ms(model, target, feeds, NodeOwners(dense, priced))
    assert set(times) == set(range(len(priced)))
    assert all(np.isfinite(cost) and cost >= 0 for cost in times.values())


@pytest.mark.parametrize("form", ["{node}_kernel_time", "fused {node}_kernel_time", "{output}_nchwc_kernel_time"])
def test_events_are_attributed_whatever_the_runtime_calls_them(form, structure_of, dense_of):
    dense = dense_of("residual")
    priced = priced_operators(structure_of("residual").operators)
    owners = NodeOwners(dense, priced)
    for node in dense.graph.node:
        weights = [name for name in node.input if any(name in p.parameters for p in priced)]
        if weights:
            owner = owners.of_event(form.format(node=node.name, output=node.output[0]))
            assert owner is not None
            assert weights[0] in priced[owner].parameters


def test_activations_belong_to_the_operator_before_them(structure_of, dense_of):
    dense = dense_of("residual")
    priced = priced_operators(structure_of("residual").operators)
    relu = next(node for node in dense.graph.node if node.op_type == "Relu")
    owner = NodeOwners(dense, priced).of_event(f"{relu.output[0]}_nchwc_kernel_time")
    assert owner is not None
    assert "stem.0.weight" in priced[owner].parameters


def test_unknown_events_belong_to_nobody(structure_of, dense_of):
    owners = NodeOwners(dense_of("flat"), priced_operators(structure_of("flat").operators))
    assert owners.of_event("something_else_kernel_time") is None
