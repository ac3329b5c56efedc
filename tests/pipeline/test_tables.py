"""Latency tables that are measured for a run or by themselves, with interruptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from autoprune.config import RunConfig
from autoprune.errors import StructureError
from autoprune.latency.table import LatencyTable
from autoprune.pipeline import tables
from autoprune.pipeline.events import Silent
from autoprune.pipeline.profiles import profile_table
from autoprune.pipeline.spaces import SpaceFile
from autoprune.profiling.journal import Journal
from autoprune.runfolder import samples_beside
from tests.measurers import SimulatedMeasurer

TINY = {"task": "tests.pipeline.tiny:make_task"}


@dataclass
class Watching(Silent):
    """Keeps notes, and is interrupted by hand when so many models are built."""

    most: float = float("inf")
    built: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: float, total: float, detail: str = "") -> None:
        self.built += 1
        if self.built > self.most:
            raise KeyboardInterrupt


def test_the_precision_of_layers_is_searched_where_whole_models_are_faster_in_int8(tmp_path: Path) -> None:
    events = Watching()
    table = profile_table(tmp_path / "table.json", events, measurer=SimulatedMeasurer(int8_is_faster=True), **TINY)
    assert table.layers
    assert table.counts["fit"] >= 8 * 40, "so many more entries than widths alone have take all rounds"
    assert events.notes[0].startswith("int8 takes ")
    assert events.notes[0].endswith("the precision of every layer is searched, too")


def test_a_table_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path, measurer = tmp_path / "table.json", SimulatedMeasurer()
    with pytest.raises(KeyboardInterrupt):
        profile_table(path, Watching(most=100), measurer=measurer, **TINY)
    assert samples_beside(path).exists()
    assert not path.exists()
    again = Watching()
    table = profile_table(path, again, measurer=measurer, **TINY)
    assert "84 models are timed already" in again.notes[0]  # the 16 of the block that was begun are not
    assert not samples_beside(path).exists()
    assert LatencyTable.load(path) == table
    assert not table.layers
    assert again.notes[1].endswith("widths alone are searched")


def test_a_table_that_goes_on_keeps_what_was_decided_by_times(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(KeyboardInterrupt):
        profile_table(path, Watching(most=100), measurer=SimulatedMeasurer(int8_is_faster=True), **TINY)
    again = Watching()
    table = profile_table(path, again, measurer=SimulatedMeasurer(int8_is_faster=False), **TINY)
    assert "84 models are timed already" in again.notes[0]
    assert again.notes[1].endswith("the precision of every layer is searched, too")
    assert not any("discarded" in note for note in again.notes)
    assert table.counts["scan"] > 80


def test_measurements_for_another_seed_are_discarded(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(KeyboardInterrupt):
        profile_table(path, Watching(most=100), measurer=SimulatedMeasurer(), **TINY)
    events = Watching()
    profile_table(path, events, measurer=SimulatedMeasurer(), seed=1, **TINY)
    assert "which are discarded" in events.notes[0]
    assert not samples_beside(path).exists()


def test_widths_alone_are_searched_where_no_twin_can_score_treated_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise StructureError("'stem' runs several times: keep it in fp32")

    monkeypatch.setattr(tables, "calibrated", refuse)
    events, measurer = Watching(), SimulatedMeasurer(int8_is_faster=True)
    structure = measurer.structure
    space = SpaceFile.read(RunConfig(task=TINY["task"]), structure).scanned()
    timer = measurer.policy_timer(structure, layers=space.layer_names, seed=0)
    assert not tables._treatments_pay(space, timer, Journal(), events)
    assert "cannot be treated: 'stem' runs several times" in events.notes[0]
