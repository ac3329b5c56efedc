"""The search that `random_kills.py` kills: all stages in seconds, on a simulated device, its progress in memory."""

from __future__ import annotations

import mmap
import os
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for the tests' simulated device

OPTIONS: dict[str, Any] = {"budgets": ["65%"], "trials": 3, "seed": 3}
CHANGES = {"os.rename", "os.remove", "os.truncate", "sqlite3.connect"}
"""Audit events of Python that come before a file changes, beside `open` for writing."""


@dataclass
class Board:
    """Memory that a search shares with this process: its stage, and the changes of files that it has made."""

    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 256))
    changes: int = 0

    def tell(self, stage: str) -> None:
        """Write the stage and the number of changes."""
        self.memory[:256] = f"{self.changes}|{stage}".encode()[:256].ljust(256, b"\0")

    def read(self) -> tuple[int, str]:
        """Return the number of changes and the stage, as the search told them last."""
        changes, _, stage = self.memory[:256].rstrip(b"\0").decode().partition("|")
        return int(changes or 0), stage


class Watch:
    """Events that write the stage of a search on the board."""

    def __init__(self, board: Board) -> None:
        self._board, self._stage = board, ""

    def stage(self, title: str) -> None:
        """A new stage begins."""
        self._stage = title
        self._board.tell(title)

    def note(self, text: str) -> None:
        """One finished fact."""
        self._board.tell(self._stage)

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """The current stage has done `done` of `total`."""
        self._board.tell(f"{self._stage} {done:g}/{total:g}")


def make_task() -> Any:
    """A net of two small convolutions on 8x8 digits; all that a search does, in seconds."""
    from torch import nn

    from autoprune import Recipe
    from tests.pipeline import tiny

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(12 * 4, 10),
        )  # fmt: skip

    recipe = Recipe(epochs=2, batch_size=50, lr=0.05)
    return replace(tiny.make_task(), name="kills", build_model=build, recipe=recipe, finetune_recipe=recipe)


def measurer() -> Any:
    """Return a simulated device, which says the same however often it is asked."""
    from autoprune.structure import analyze
    from tests.measurers import SimulatedMeasurer

    class Repeatable(SimulatedMeasurer):
        """Without noise, which would go on from its beginning after a kill."""

        def machine(self, structure: Any, **options: Any) -> Any:
            kept: dict[str, Any] = options | {"noise": 0.0}
            return super().machine(structure, **kept)

        @property
        def structure(self) -> Any:
            task = make_task()
            self._structure = self._structure or analyze(task.build_model().eval(), task.example_inputs)
            return self._structure

    return Repeatable()


def search(folder: Path, executor: str, board: Board, kill_at: int | None) -> None:
    """Search, or resume; end this process group right before a change of a file if asked to."""
    import autoprune
    from autoprune.device.noise import HostState

    HostState.now = HostState  # limits and clocks of this host are none of the simulated device
    inside, us = str(folder), os.getpid()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(inside) and os.getpid() == us:
            board.changes += 1
            if board.changes == kill_at:
                board.tell(f"{board.read()[1]}, {event} {Path(str(arguments[0])).name}")
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(count)
    workers = {"workers": 1} if executor == "process" else {}
    task = f"{Path(__file__).resolve()}:make_task"
    events = Watch(board)
    options: dict[str, Any] = {"executor": executor, "measurer": measurer()} | workers | OPTIONS
    autoprune.search(task, run_dir=folder, events=events, **options)
    events.stage("the end")


def verify(folder: Path) -> None:
    """Raise unless every file of a run is what it wrote, and no trial is left running."""
    from autoprune.pipeline.events import Silent
    from autoprune.pipeline.folder_check import check_folder

    checked = check_folder(folder, Silent(), redo=False)
    assert checked.is_whole, [*checked.problems, *(f"{f.name}: {f.state}" for f in checked.files if not f.is_proven)]
