"""A search tells how long it will still take, and its folder keeps what it told last."""

from pathlib import Path

import pytest

import autoprune
from autoprune.cli.study import status_lines
from autoprune.lease import held
from autoprune.pipeline.events import Silent
from autoprune.runfolder import read_json
from autoprune.search.time_estimate import Remaining
from tests.conftest import QUICK, SPEC
from tests.measurers import SimulatedMeasurer


class Watching(Silent):
    """Keeps the stages and every estimate with the stage that it was told in."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.told: list[tuple[str, Remaining]] = []

    def stage(self, title: str) -> None:
        self.stages.append(title)

    def remaining(self, remaining: Remaining) -> None:
        self.told.append((self.stages[-1], remaining))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[autoprune.Run, Watching]:
    events, folder = Watching(), tmp_path_factory.mktemp("watched") / "run"
    options = QUICK | {"max_minutes": 10}
    return autoprune.search(SPEC, run_dir=folder, events=events, measurer=SimulatedMeasurer(), **options), events


def test_every_stage_says_what_is_left_of_the_whole_command(watched: tuple[autoprune.Run, Watching]) -> None:
    _, events = watched
    first, last = events.told[0][1], events.told[-1][1]
    ahead = ["Latency table", "Dense model", "Channel order", "Rung proxy", "Rung brief", "Rung longer"]
    assert {*ahead, "Full fine-tune", "Export and verification"} <= set(first.seconds_by_part)
    assert first.seconds == pytest.approx(sum(first.seconds_by_part.values()))
    assert first.basis == "from the time of a sample pass"
    assert set(last.seconds_by_part) <= {"Export and verification"}
    assert last.basis == f"from {last.trials} finished trials"
    assert last.trials >= 4
    assert {stage for stage, _ in events.told} >= {*ahead, "Full fine-tune", "Export and verification"}


def test_a_search_within_a_time_ends_with_verified_models_and_keeps_its_plan(
    watched: tuple[autoprune.Run, Watching],
) -> None:
    run, _ = watched
    assert run.models
    assert run.config.max_minutes == 10
    assert read_json(run.folder.effort)["full_is_final"]


def test_the_folder_keeps_the_seconds_of_all_calls(watched: tuple[autoprune.Run, Watching]) -> None:
    run, _ = watched
    before = read_json(run.folder.progress)
    assert before["seconds_left"] == 0
    autoprune.search(run_dir=run.folder.path, events=Watching(), measurer=SimulatedMeasurer())
    assert read_json(run.folder.progress)["seconds_spent"] > before["seconds_spent"] > 0


def test_status_shows_the_estimate_while_somebody_works_on_the_run(watched: tuple[autoprune.Run, Watching]) -> None:
    run, _ = watched
    assert not any("left in all" in line for line in status_lines(run.folder.path))
    with held(run.folder.lease):
        (line,) = [line for line in status_lines(run.folder.path) if "left in all" in line]
    assert "about 0 s left in all (the search is finished, " in line


def test_events_that_do_not_ask_get_no_estimate(finished: autoprune.Run) -> None:
    assert not Path(finished.folder.progress).exists()
