"""Accuracy levels of layers whose weights alone are rounded: which are chosen, and where the choice is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.config import RunConfig
from autoprune.device.timing import Protocol, Timings
from autoprune.evaluation.calibration_examples import arithmetic_of
from autoprune.latency.table import LatencyTable
from autoprune.pipeline import accuracy_levels
from autoprune.pipeline.spaces import SpaceFile
from autoprune.pipeline.tables import profiled_table
from autoprune.runfolder import RunFolder
from autoprune.structure import analyze
from tests.machines import SimulatedTimer
from tests.measurers import SimulatedMeasurer
from tests.pipeline.test_tables import TINY, Watching


@dataclass(frozen=True, kw_only=True)
class LeveledTimer(SimulatedTimer):
    """Takes so many times as long at an accuracy level of a precision."""

    by_level: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def time(self, widths: np.ndarray, stage: str, protocol: Protocol) -> Timings:
        """Time rows."""
        timings = super().time(widths, stage, protocol)
        factor = np.prod([self.by_level.get(chosen, 1.0) for chosen in self.accuracy_levels.items()])
        return replace(timings, ratios=tuple(float(factor * ratio) for ratio in timings.ratios))


class LeveledMeasurer(SimulatedMeasurer):
    """A device on which inputs in fp32 take longer in `w8`, and less in `w4`."""

    def policy_timer(self, *arguments: Any, **options: Any) -> LeveledTimer:
        """Return a timer of that device."""
        return LeveledTimer(
            **vars(super().policy_timer(*arguments, **options)), by_level={("w8", 1): 1.5, ("w4", 1): 0.8}
        )


def chosen(tmp_path: Path, events: Watching) -> Mapping[str, int]:
    """The levels of a table, of a space in which the head may be in `w4` and `w8`; the run that has it uses them."""
    path, measurer, folder = tmp_path / "space.yaml", LeveledMeasurer(), RunFolder(tmp_path)
    path.write_text("levels: 1\ntreatments:\n  head: [fp32, w4, w8]\n")
    space = SpaceFile.read(RunConfig(task=TINY["task"], space=str(path)), measurer.structure)
    table = profiled_table(measurer.structure, space, measurer, 0, folder.table, events, max_seconds=0)
    assert LatencyTable.load(folder.table).accuracy_levels == table.accuracy_levels
    assert arithmetic_of(folder).accuracy_levels == table.accuracy_levels
    return table.accuracy_levels


def test_the_faster_level_is_chosen_and_used(tmp_path: Path) -> None:
    events = Watching()
    assert chosen(tmp_path, events) == {"w4": 1, "w8": 4}
    notes = [note.partition(":")[0] for note in events.notes[:2]]
    assert notes == ["w4 computes at accuracy level 1", "w8 computes at accuracy level 4"]


def test_inputs_stay_in_fp32_where_int8_costs_more_than_the_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(accuracy_levels, "relative_error", lambda *_: 3.5)
    events = Watching()
    assert chosen(tmp_path, events) == {"w4": 1, "w8": 1}
    assert events.notes[1].endswith("but outputs err 3.5 times as much as by the weights alone")


def test_outliers_of_inputs_count_against_inputs_in_int8() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8)).eval(), torch.randn(1, 32)
    plain = accuracy_levels.relative_error(analyze(net, (x,)), ["0.weight"], "w8")
    assert 0.5 < plain < accuracy_levels._LARGEST_ERROR
    x[0, 0] = 1e3
    with torch.no_grad():
        net[0].weight[:, 0] = 0  # the outlier takes the grid of its block, and nothing reads it
    assert accuracy_levels.relative_error(analyze(net, (x,)), ["0.weight"], "w8") > accuracy_levels._LARGEST_ERROR
