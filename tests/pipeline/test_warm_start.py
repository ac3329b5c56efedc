from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autoprune
from autoprune.errors import RunFolderError, UsageError
from autoprune.pipeline.expected_work import derived_effort
from autoprune.pipeline.spaces import SpaceFile
from autoprune.pipeline.warm_start import take_files, take_scores
from autoprune.records import SearchSpace
from autoprune.report import read_run
from autoprune.runfolder import RunFolder
from autoprune.trackers import Tracker
from autoprune.trials import FinishedTrial
from tests.conftest import OPTIONS, SPEC
from tests.measurers import SimulatedMeasurer


class Notes(Tracker):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def about(self, path: Path) -> list[str]:
        return [line for line in self.lines if str(path) in line]


def test_all_that_fits_is_used_and_said(finished: autoprune.Run, tmp_path: Path) -> None:
    told, notes, other = list[FinishedTrial](), Notes(), finished.folder
    options = OPTIONS | {"budgets": ["65%"]}
    run = autoprune.search(
        SPEC, run_dir=tmp_path / "b", warm_start=str(other.path), measurer=SimulatedMeasurer(), events=notes,
        on_trial=told.append, **options,
    )  # fmt: skip
    table, dense, scores = notes.about(other.path)
    assert table == f"the latency table of {other.path} fits: it is not measured again"
    assert dense == f"the dense model of {other.path} fits: it is not trained again"
    assert scores.startswith(f"scores of {other.path} fit: ")
    assert run.folder.dense.read_bytes() == other.dense.read_bytes()
    rows = read_run(other, finished.config.model_dump(), other.study).scored
    known = {row.digest for row in rows if row.fidelity == "proxy"}  # a refit begins on a later rung
    scored = {trial.policy.digest() for trial in told if trial.rung == "proxy"}
    assert not scored & known, "nothing is scored twice at the same rung"
    assert len(scored) < len(known)


@pytest.fixture
def fresh(finished: autoprune.Run, tmp_path: Path) -> RunFolder:
    """A folder that was claimed for the same task, and has nothing else."""
    folder = RunFolder(tmp_path / "fresh")
    folder.create()
    shutil.copy(finished.folder.environment, folder.environment)
    return folder


def files_taken(run: autoprune.Run, folder: RunFolder, other: Path, **changes: Any) -> list[str]:
    """Notes when the files of `other` are asked for, by a configuration with some changes."""
    config = run.config.model_copy(update={"warm_start": str(other), **changes})
    structure, notes, target = run.dense_model.structure, Notes(), SimulatedMeasurer().target
    if "threads" in changes:
        target = dataclasses.replace(target, threads=changes["threads"])
    take_files(config, folder, run.open_task(), structure, SpaceFile.read(config, structure), target, notes)
    return notes.lines


@pytest.mark.parametrize(
    ("changes", "table", "dense"),
    [
        ({"threads": 3}, "does not fit: .*threads", "fits: it is not trained again"),
        (
            {"table": "t.json", "dense": "d"},
            "does not fit: --table names another",
            "does not fit: --dense names another",
        ),
        ({"space": "every-width"}, "does not fit: ", "fits"),
    ],
)
def test_every_part_says_whether_it_fits(
    finished: autoprune.Run, fresh: RunFolder, changes: dict[str, Any], table: str, dense: str
) -> None:
    if "space" in changes:
        changes = {"space": str(fresh.path / "every.yaml")}
        Path(changes["space"]).write_text("multiple_of: 1\n")
    lines = files_taken(finished, fresh, finished.folder.path, **changes)
    other = finished.folder.path
    for part, verdict, line in zip(("latency table", "dense model"), (table, dense), lines, strict=True):
        assert re.match(f"the {part} of {other} {verdict}", line), line
    assert fresh.table.exists() == table.startswith("fits")
    assert fresh.dense.exists() == dense.startswith("fits")


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


OTHERS: dict[str, tuple[Callable[[autoprune.Run], None], str]] = {
    "task": (lambda run: edited(run.folder.environment, task="another"), "another task"),
    "versions": (
        lambda run: edited(run.folder.environment, versions={"autoprune": "0.0.1", "torch": "1"}),
        "autoprune was 0.0.1 and is .*, torch was 1 and is",
    ),
    "weights": (lambda run: run.folder.dense.write_bytes(b"other"), "other dense weights"),
    "order": (lambda run: edited(run.folder.order, scores="l2"), "channels are ranked otherwise"),
    "recipe": (lambda run: run.folder.recipe.write_text("{}"), "another recipe"),
    "seed": (
        lambda run: run.folder.write_config(run.config.model_dump(mode="json") | {"seed": 9}),
        "seed was 9 and is 0",
    ),
    "none": (lambda run: run.folder.study.unlink(), "none was scored yet"),
}


@pytest.mark.parametrize("what", [*OTHERS, "space"])
def test_scores_of_another_question_are_not_used(copied: autoprune.Run, fresh: RunFolder, what: str) -> None:
    for name in ("dense", "order"):
        shutil.copy(getattr(copied.folder, name), getattr(fresh, name))
    config = copied.config.model_copy(update={"warm_start": str(copied.folder.path)})
    change, reason = OTHERS.get(what, (lambda run: None, "another search space or effort"))
    change(copied)
    space, notes = SearchSpace(id="another", levels={}), Notes()
    take_scores(config, fresh, fresh.study, space, derived_effort(config, copied.open_task()), notes)
    (line,) = notes.lines
    assert line.startswith(f"scores of {copied.folder.path} do not fit: ")
    assert re.search(reason, line)
    assert not fresh.study.exists()


def test_only_another_run_is_a_start(finished: autoprune.Run, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is no run folder: it has no run.yaml. --warm-start takes"):
        autoprune.search(SPEC, run_dir=tmp_path / "new", warm_start=str(tmp_path))
    assert not (tmp_path / "new").exists()
    shutil.copytree(finished.folder.path, tmp_path / "same")
    (tmp_path / "same" / "study.db").unlink()
    with pytest.raises(UsageError, match="is the run itself: leave out --warm-start"):
        autoprune.search(run_dir=tmp_path / "same", warm_start=str(tmp_path / "same"))
