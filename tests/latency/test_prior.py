from dataclasses import replace

import numpy as np
import pytest

from autoprune.device.timing import Kernels
from autoprune.latencies import Geometry
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.prior import prior_ms, work_ms
from autoprune.profiling.node_times import profiled_ms
from autoprune.profiling.policy_timer import make_policy_timer
from tests.machines import index_of


@pytest.fixture
def world(structure_of, space_of, dense_of):
    """Geometries of the residual net, priced operators, dense export, space, index, and the node of every parameter."""
    structure, space, dense = structure_of("residual"), space_of("residual"), dense_of("residual")
    priced = PricedOperators.of(structure)
    geometries = possible_geometries(priced.varying, space, tuple(space.levels))
    nodes = {name: node.name for node in dense.graph.node for name in node.input}
    return geometries, priced, dense, space, index_of(structure, geometries), nodes


def profiled(world, rows, ms_of):
    """Prior of made-up kernels, where every operator of a policy takes `ms_of(geometry)`, and the profiled times."""
    geometries, priced, dense, _, index, nodes = world
    weighted = [op for op in priced.all if any(name in nodes for name in op.parameters)]
    kernels = []
    for row in rows:
        held = [op for op in weighted if op.present(row[None])[0]]
        names = tuple(nodes[next(n for n in op.parameters if n in nodes)] for op in held)
        kernels.append(Kernels(names=names, ms=np.array([[ms_of(op.geometries(row[None])[0]) for op in held]] * 3)))
    known_ms = profiled_ms(geometries, index.numbers(rows), kernels, dense, priced)
    return prior_ms(geometries, known_ms), known_ms


def cost(geometry):
    return 0.01 + 1e-3 * geometry.c_out


def test_what_was_profiled_is_believed_and_counted(world):
    geometries, priced, _, space, _, _ = world
    rows = np.array([[levels[-1] for levels in space.levels.values()], [levels[0] for levels in space.levels.values()]])
    prior, known_ms = profiled(world, rows, cost)
    seen = {key for op in priced.all for key in op.geometries(rows) if op.units}
    weighted = {g for g in seen if g.op in ("conv2d", "linear")}
    assert len(weighted) == 12
    for geometry, prior_of_geometry in zip(geometries, prior, strict=True):
        if geometry in weighted:
            assert prior_of_geometry == pytest.approx(cost(geometry))
    assert {geometries[number] for number in known_ms} == weighted
    assert (prior > 0).all()


def test_a_geometry_that_was_not_seen_takes_the_nearest_of_its_kind_by_the_root_of_the_work(world):
    geometries, _, _, space, _, _ = world
    rows = np.array([[levels[at] for levels in space.levels.values()] for at in (0, -1)])
    prior, _ = profiled(world, rows, cost)
    by_geometry = dict(zip(geometries, prior, strict=True))
    body = next(g for g in geometries if g.c_in == g.c_out == 16 and g.op == "conv2d")
    half = replace(body, c_in=8, c_out=8)
    assert by_geometry[half] == pytest.approx(by_geometry[body] * 0.5)


def test_the_median_of_several_sightings_counts(world):
    _, _, _, space, _, _ = world
    rows = np.array([[levels[-1] for levels in space.levels.values()]] * 3)
    costs = iter([0.1] * 6 + [0.2] * 6 + [5.0] * 6)
    prior, _ = profiled(world, rows, lambda geometry: next(costs))
    geometries = world[0]
    body = geometries.index(next(g for g in geometries if g.c_in == g.c_out == 16 and g.op == "conv2d"))
    assert prior[body] == pytest.approx(0.2)


def test_a_kernel_that_took_no_microsecond_still_costs_something(world):
    _, _, _, space, _, _ = world
    rows = np.array([[levels[-1] for levels in space.levels.values()]])
    prior, _ = profiled(world, rows, lambda geometry: 0.0)
    assert (prior > 0).all()


def test_without_a_profiler_the_work_decides(world):
    geometries, priced, _, _, index, _ = world
    known_ms = profiled_ms(geometries, index.numbers(np.empty((0, 3), dtype=np.int64)), [], None, priced)
    assert known_ms == {}
    prior = prior_ms(geometries, known_ms)
    np.testing.assert_allclose(prior, [work_ms(g) for g in geometries])


def test_work_grows_with_everything_that_makes_work():
    small = Geometry(op="conv2d", c_in=8, c_out=8, out_rows=4, out_columns=4, kernel=(3, 3))
    for larger in (
        replace(small, c_in=16),
        replace(small, c_out=16),
        replace(small, out_rows=8),
        replace(small, kernel=(5, 5)),
    ):
        assert work_ms(larger) > work_ms(small) > 0
    assert work_ms(replace(small, groups=8)) < work_ms(small)
    assert work_ms(Geometry(op="add", c_in=0, c_out=0)) > 0


def test_the_profiler_of_the_runtime_gives_a_prior(structure_of, space_of, target):
    structure, space = structure_of("depthwise"), space_of("depthwise")
    timer = make_policy_timer(structure, target)
    priced = PricedOperators.of(structure)
    geometries = possible_geometries(priced.varying, space, tuple(space.levels))
    rows = np.array([list(space.smallest().widths.values()), list(space.largest().widths.values())])
    numbers = index_of(structure, geometries).numbers(rows)
    known_ms = profiled_ms(geometries, numbers, timer.kernels(rows), timer.dense_onnx, priced)
    assert set(known_ms) == set(numbers.ravel().tolist())
    prior = prior_ms(geometries, known_ms)
    assert (prior > 0).all()
    assert np.isfinite(prior).all()
