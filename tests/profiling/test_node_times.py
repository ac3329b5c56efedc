from dataclasses import replace

import numpy as np
import pytest
import torch

from autoprune.device.runner import kernel_times
from autoprune.device.timing import Kernels
from autoprune.latency.charges import priced_operators
from autoprune.onnxgraph.export import export_onnx
from autoprune.onnxgraph.resizer import Resizer
from autoprune.profiling.node_times import NodeOwners, node_times_ms
from autoprune.profiling.policy_timer import make_policy_timer
from autoprune.structure import analyze
from autoprune.task.transformers import ViT


def kernels(*pairs):
    """Kernels of one or more runs: name and milliseconds (a number, or one for each run)."""
    rows = np.broadcast_arrays(*[np.atleast_1d(np.array(ms, dtype=float)) for _, ms in pairs])
    return Kernels(names=tuple(name for name, _ in pairs), ms=np.stack(rows, axis=1))


@pytest.fixture
def residual(structure_of, dense_of):
    """The dense residual net, its priced operators, and the nodes that run the weights of each module."""
    dense, priced = dense_of("residual"), priced_operators(structure_of("residual").operators)
    nodes = {name.removesuffix(".weight"): node for node in dense.graph.node for name in node.input}
    return NodeOwners(dense, priced), priced, nodes


def owner_of(priced, parameter):
    return next(i for i, operator in enumerate(priced) if parameter in operator.parameters)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_priced_operator_gets_node_times(precision, net, structure_of, space_of, target):
    structure = structure_of(net)
    timer = make_policy_timer(structure, replace(target, precision=precision))
    priced = priced_operators(structure.operators)
    rows = np.array([list(space_of(net).smallest().widths.values())])
    (measured,) = timer.kernels(rows)
    times = node_times_ms(measured, NodeOwners(timer.dense_onnx, priced))
    assert set(times) == {i for i, operator in enumerate(priced) if operator.present(rows)[0]}
    assert all(np.isfinite(cost) and cost >= 0 for cost in times.values())


def test_all_time_of_the_profiler_is_attributed(structure_of, dense_of, space_of, target, feeds):
    structure, dense = structure_of("residual"), dense_of("residual")
    model = Resizer(dense, structure).resize(space_of("residual").largest())
    (measured,) = kernel_times([model], target, feeds)
    one_run = replace(measured, ms=measured.ms[:1])
    times = node_times_ms(one_run, NodeOwners(dense, priced_operators(structure.operators)))
    assert sum(times.values()) == pytest.approx(one_run.ms.sum())


@pytest.mark.parametrize(
    "form", ["{node}", "fused {node}", "{output}_nchwc", "{node}_token_12", "{node}/MatMulScaleFusion/"]
)
def test_kernels_are_attributed_whatever_the_runtime_calls_them(form, residual, dense_of):
    owners, priced, _ = residual
    count = 0
    for node in dense_of("residual").graph.node:
        weights = [name for name in node.input if any(name in p.parameters for p in priced)]
        if weights:
            count += 1
            owner = owners.of_kernel(form.format(node=node.name, output=node.output[0]))
            assert owner is not None
            assert weights[0] in priced[owner].parameters
    assert count == 6


def test_activations_belong_to_the_operator_before_them(residual, dense_of):
    owners, priced, _ = residual
    relu = next(node for node in dense_of("residual").graph.node if node.op_type == "Relu")
    assert owners.of_kernel(f"{relu.output[0]}_nchwc") == owner_of(priced, "stem.0.weight")
    assert owners.of_kernel(relu.name) == owner_of(priced, "stem.0.weight")


def test_poolings_are_matched_in_order(residual, dense_of):
    owners, priced, _ = residual
    pooling = next(n for n in dense_of("residual").graph.node if n.op_type in ("GlobalAveragePool", "ReduceMean"))
    owner = owners.of_kernel(pooling.name)
    assert owner is not None
    assert priced[owner].op == "adaptive_avg_pool2d"


def test_unknown_kernels_belong_to_nobody(residual):
    owners, _, _ = residual
    assert owners.of_kernel("something_else") is None
    assert node_times_ms(kernels(("something_else", 1.0)), owners) == {}


def test_kernels_of_one_operator_add_up_and_the_median_run_counts(residual):
    owners, priced, nodes = residual
    stem = nodes["stem.0"]
    times_ms = node_times_ms(
        kernels((stem.name, [1.0, 2.0, 9.0]), (f"{stem.output[0]}_nchwc", [0.5, 0.5, 0.5])), owners
    )
    assert times_ms == {owner_of(priced, "stem.0.weight"): 2.5}


def test_a_change_of_layout_is_charged_to_the_kernel_that_asked_for_it(residual):
    owners, priced, nodes = residual
    times_ms = node_times_ms(
        kernels(("Reorder_1", 1.0), ("ReorderInput", 2.0), (nodes["stem.0"].name, 4.0), (nodes["head"].name, 8.0)),
        owners,
    )
    assert times_ms == {owner_of(priced, "stem.0.weight"): 7.0, owner_of(priced, "head.weight"): 8.0}


def test_a_change_of_layout_at_the_end_belongs_to_nobody(residual):
    owners, priced, nodes = residual
    times_ms = node_times_ms(kernels((nodes["head"].name, 8.0), ("ReorderOutput", 1.0)), owners)
    assert times_ms == {owner_of(priced, "head.weight"): 8.0}


def test_no_runs_give_no_times(residual):
    owners, _, nodes = residual
    empty = Kernels(names=(nodes["head"].name,), ms=np.empty((0, 1)))
    assert node_times_ms(empty, owners) == {}


def test_what_follows_a_softmax_belongs_to_attention():
    structure = analyze(ViT(1, 8, 3, dim=8, depth=2, heads=2, hidden=6).eval(), (torch.zeros(1, 1, 8, 8),))
    dense = export_onnx(structure.model, structure.example_inputs)
    priced = priced_operators(structure.operators)
    owners = NodeOwners(dense, priced)
    softmaxes = [node for node in dense.graph.node if node.op_type == "Softmax"]
    products = [next(n for n in dense.graph.node if softmax.output[0] in n.input) for softmax in softmaxes]
    owner_positions = [owners.of_kernel(node.name) for node in (*softmaxes, *products)]
    attention = [i for i, operator in enumerate(priced) if operator.op == "scaled_dot_product_attention"]
    assert len(attention) == 2
    assert owner_positions == attention * 2
