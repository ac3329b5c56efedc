"""A search tells how long it will still take, and its folder keeps what it told last."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

import autoprune
from autoprune.cli.study import status_lines
from autoprune.config import RunConfig
from autoprune.lease import held
from autoprune.pipeline.events import FULL, Silent
from autoprune.pipeline.expected_work import Timed, _uncounted, derived_effort, expected_work, usual_times
from autoprune.pipeline.timed_events import TimedEvents, timed
from autoprune.profiling.duration import ProfileSize
from autoprune.records import SearchSpace
from autoprune.runfolder import RunFolder, read_json, write_json
from autoprune.search.time_estimate import Remaining
from autoprune.structure import analyze
from autoprune.treatments import DENSE, Treatment
from tests.conftest import QUICK, SPEC
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny
from tests.pipeline.test_time_limit import WORK


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
    assert first.basis == "from a few short trials"
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


@pytest.mark.parametrize("known", [False, True])
def test_a_call_that_is_ended_or_killed_keeps_what_it_spent(tmp_path: Path, known: bool) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.progress, {"seconds_spent": 100.0})
    during: list[float] = []

    def searched() -> None:
        with timed(Silent(), folder, 10, keep_seconds=0.01) as events:
            assert isinstance(events, TimedEvents)
            if known:
                events.expect(WORK)
            spent = read_json(folder.progress)["seconds_spent"]
            deadline = time.monotonic() + 10
            while spent == read_json(folder.progress)["seconds_spent"] and time.monotonic() < deadline:
                time.sleep(0.02)  # one long trial without any event
            during.append(read_json(folder.progress)["seconds_spent"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched()
    assert read_json(folder.progress)["seconds_spent"] >= during[0] > 100
    assert ("seconds_left" in read_json(folder.progress)) == known


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    events = TimedEvents(Silent(), RunFolder(tmp_path))
    config = RunConfig(task=SPEC, budgets=("score:-1%",))
    events.expect(replace(WORK, uncounted=_uncounted(config)))
    assert read_json(tmp_path / "progress.json")["basis"] == (
        "from a guess; without up to 5 further latencies that budgets by score search"
    )
    assert not _uncounted(RunConfig(task=SPEC))


def test_status_shows_the_estimate_while_somebody_works_on_the_run(watched: tuple[autoprune.Run, Watching]) -> None:
    run, _ = watched
    assert not any("left in all" in line for line in status_lines(run.folder.path))
    with held(run.folder.lease):
        (line,) = [line for line in status_lines(run.folder.path) if "left in all" in line]
    assert "about 0 s left in all (the search is finished, " in line


def test_events_that_do_not_ask_get_no_estimate(finished: autoprune.Run) -> None:
    assert not Path(finished.folder.progress).exists()


@pytest.mark.parametrize(("levels", "full"), [((DENSE,), 2), ((Treatment.parse("sparse:50%"), DENSE), 5)])
def test_models_whose_zeros_are_shared_out_are_part_of_the_work(levels: tuple[Treatment, ...], full: int) -> None:
    task, config = tiny.make_task(), RunConfig(task=SPEC, budgets=("bytes:50%",))
    structure = analyze(task.build_model(), task.example_inputs)
    treated = {"head.weight": levels}
    space = SearchSpace(id="", levels={**{unit.name: (unit.width,) for unit in structure.units}, **treated})
    size = ProfileSize(few_scans=1, all_scans=1, rounds=1)
    seconds = Timed(
        basis="", pass_s=0.1, run_s=0.1, profile=size, analysis_s=1.0, start_s=0.0, times=usual_times(0.1, 1.0)
    )
    work = expected_work(config, task, structure, space, derived_effort(config, task), seconds)
    assert sum(part.units for part in work.parts() if part.name == FULL) == full
