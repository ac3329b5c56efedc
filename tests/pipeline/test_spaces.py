"""The search space that goes with a latency table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from autoprune.config import RunConfig
from autoprune.device.connect import make_target
from autoprune.device.target import Target
from autoprune.errors import ConfigError, UsageError
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.spaces import SpaceFile
from autoprune.structure import Structure, analyze
from autoprune.treatments import DENSE, INT8


@pytest.fixture(scope="module")
def structure() -> Structure:
    return analyze(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), (torch.zeros(1, 4),))


def space_file(structure: Structure, *budgets: str, strategy: str = "guided", space: str = "default") -> SpaceFile:
    config = RunConfig(task="digits", budgets=budgets or ("50%",), strategy=strategy, space=space)
    return SpaceFile.read(config, structure)


DENSE_ALONE = {"0.weight": [DENSE.code], "2.weight": [DENSE.code]}


def test_all_widths_are_searched_when_none_is_faster_and_no_budget_is_a_latency(structure: Structure) -> None:
    useful = {"0": [16]} | DENSE_ALONE
    assert space_file(structure, "params:50%").narrowed(useful).levels["0"] == tuple(range(2, 17))
    assert space_file(structure, "params:50%").narrowed(useful, {"0": [4, 16]}).levels["0"] == (4, 16)
    with pytest.raises(ConfigError, match="measurably faster on this target; `levels` of its own searches all"):
        space_file(structure, "50%", "params:50%").narrowed(useful)


def test_all_widths_are_searched_for_a_size_also_when_int8_is_faster(structure: Structure) -> None:
    useful = {"0": [16]} | DENSE_ALONE | {"0.weight": [DENSE.code, INT8.code]}
    assert space_file(structure, "params:50%").narrowed(useful).levels["0"] == tuple(range(2, 17))
    assert space_file(structure, "50%").narrowed(useful).levels["0"] == (16,)


def test_useful_widths_are_searched_where_there_are_some(structure: Structure) -> None:
    useful = {"0": [8, 16]} | DENSE_ALONE
    assert space_file(structure, "params:50%").narrowed(useful, {"0": [4, 16]}).levels["0"] == (8, 16)


def test_treatments_that_save_bytes_alone_are_searched_under_a_budget_of_bytes(
    treated_table: LatencyTable, structure_of: Callable[[str], Structure]
) -> None:
    structure, layer = structure_of("residual"), treated_table.layers[0]
    table = replace(treated_table, useful={**treated_table.useful, layer: (DENSE.code,)})
    offered = [
        space_file(structure, *budgets, space="joint").of_table(table).levels[layer]
        for budgets in (["50%"], ["50%", "bytes:30%"])
    ]
    assert offered == [(DENSE,), (INT8, DENSE)]


def test_yardsticks_of_widths_leave_all_layers_dense_unless_told(structure: Structure) -> None:
    assert not space_file(structure, strategy="netadapt").scanned().layer_names
    assert space_file(structure, strategy="guided").scanned().layer_names
    assert space_file(structure, strategy="netadapt", space="joint").scanned().layer_names


@pytest.mark.parametrize("target", [make_target("torch-cpu"), make_target("ort-cpu", precision="int8")])
def test_targets_that_cannot_run_treated_layers_are_refused_before_anything_is_measured(
    structure: Structure, target: Target
) -> None:
    joint = space_file(structure, space="joint")
    with pytest.raises(UsageError, match=r"need ONNX Runtime and a target in fp32; got .*--space widths"):
        joint.require_target(target)
    joint.require_target(make_target("ort-cpu"))
    space_file(structure).require_target(target)


def test_scores_of_channels_need_a_space_with_widths(structure: Structure) -> None:
    space_file(structure, space="widths").require_widths("taylor")
    space_file(structure, "bytes:50%", space="unstructured").require_widths("obs")
    with pytest.raises(ConfigError, match="the space unstructured keeps all widths; got --scores taylor"):
        space_file(structure, "bytes:50%", space="unstructured").require_widths("taylor")
