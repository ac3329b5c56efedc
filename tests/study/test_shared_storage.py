"""Studies in a journal and in a real PostgreSQL."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from autoprune.errors import RunFolderError
from autoprune.executors.inline import InlineExecutor
from autoprune.search.controller import run_search
from autoprune.study.broker import Broker
from autoprune.study.copying import copy_studies
from autoprune.study.location import SharedStorage, study_name
from autoprune.study.spec import StudySpec
from autoprune.study.storage import check_storage, opened, sole_controller
from tests import fakes
from tests.fakes import LIMITS, PROXY, SPACE, predict
from tests.study.postgres import BIN, Server

pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(BIN is None, reason="there is no PostgreSQL")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="prune-pg-"))  # a short path: it holds a socket
    folder.chmod(0o755)
    server = Server(folder / "pg")
    yield server
    server.stop("immediate")
    shutil.rmtree(folder)


def search(folder, location):
    effort = fakes.Effort(**vars(fakes.EFFORT) | {"trials": 9})
    return fakes.search(folder, strategy="random", effort=effort, location=location)


def scores(outcome):
    return {rung: {r.policy: r.measurement for r in results} for rung, results in outcome.results.items()}


@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_the_outcome_is_that_of_a_file_and_can_be_resumed(request, tmp_path, kind):
    url = f"journal:{tmp_path / 'journal'}" if kind == "journal" else request.getfixturevalue("server").url
    location = SharedStorage(url, tmp_path.name)
    outcome = run_search(search(tmp_path, location), InlineExecutor(fakes.plain))
    assert outcome == run_search(search(tmp_path, tmp_path / "study.db"), InlineExecutor(fakes.plain))
    log = tmp_path / "log"
    assert run_search(search(tmp_path, location), InlineExecutor(lambda: fakes.logging_to(log))) == outcome
    assert not log.exists()


def test_a_copied_run_goes_on_elsewhere(server, tmp_path):
    first = run_search(search(tmp_path, tmp_path / "study.db"), InlineExecutor(fakes.plain))
    location = SharedStorage(server.url, tmp_path.name)
    assert copy_studies(tmp_path / "study.db", location) == ["rung-0", "rung-1"]
    log = tmp_path / "log"
    assert run_search(search(tmp_path, location), InlineExecutor(lambda: fakes.logging_to(log))) == first
    assert not log.exists()
    assert copy_studies(tmp_path / "study.db", location) == ["rung-0", "rung-1"]  # again: nothing is to be done
    with opened(tmp_path / "study.db") as storage:  # it went on after its copy was made
        study = optuna.load_study(study_name="rung-1", storage=storage)
        running = study.ask()
    copy_studies(tmp_path / "study.db", location)
    with opened(tmp_path / "study.db") as storage:
        optuna.load_study(study_name="rung-1", storage=storage).tell(running.number, state=TrialState.FAIL)
    copy_studies(tmp_path / "study.db", location)
    with opened(location) as storage:
        study = optuna.load_study(study_name=study_name(location, "rung-1"), storage=storage)
        assert study.trials[-1].state == TrialState.FAIL
        study.ask()
    with pytest.raises(RunFolderError, match="already exists"):
        copy_studies(tmp_path / "study.db", location)


def test_a_copy_that_was_cut_off_goes_on(tmp_path):
    outcome = run_search(search(tmp_path, tmp_path / "study.db"), InlineExecutor(fakes.plain))
    location = SharedStorage(f"journal:{tmp_path / 'journal'}", tmp_path.name)
    with opened(tmp_path / "study.db") as origin, opened(location) as into:
        ours = optuna.load_study(study_name="rung-0", storage=origin)
        torn = optuna.create_study(study_name=study_name(location, "rung-0"), storage=into, directions=ours.directions)
        torn.add_trials(ours.get_trials()[:3])
    assert copy_studies(tmp_path / "study.db", location) == ["rung-0", "rung-1"]
    log = tmp_path / "log"
    assert run_search(search(tmp_path, location), InlineExecutor(lambda: fakes.logging_to(log))) == outcome
    assert not log.exists()


def test_a_copy_back_brings_results_that_the_sampler_was_not_told(tmp_path):
    own, journal = tmp_path / "study.db", SharedStorage(f"journal:{tmp_path / 'journal'}", tmp_path.name)
    study_spec = StudySpec(space=SPACE, fidelity=PROXY, limits=LIMITS, run_seed=1)
    with closing(Broker(own, study_spec, predict, sampler="random", trials=8)) as broker:
        assert len(broker.ask()) == 8
    copy_studies(own, journal)
    with closing(Broker(journal, study_spec, predict, sampler="random", trials=8)) as broker:
        for spec in broker.ask()[1:]:
            broker.finish(fakes.evaluate(spec))
    copy_studies(journal, own)
    with closing(Broker(own, study_spec, predict, sampler="random", trials=8)) as broker:
        assert (broker.finished, len(broker.ask())) == (7, 1)


def test_one_controller_for_a_run_whatever_its_host(server, tmp_path):
    location = SharedStorage(server.url, tmp_path.name)
    with sole_controller(location):
        with (
            pytest.raises(RunFolderError, match=r"is in use by autoprune \S+ \d+ since \d{4}"),
            sole_controller(location),
        ):
            pass
        with sole_controller(SharedStorage(server.url, "another")):
            pass
    with sole_controller(location):
        pass


def test_a_server_that_was_killed_and_started_again_costs_nothing(server, tmp_path):
    location = SharedStorage(server.url, tmp_path.name)
    undisturbed = run_search(search(tmp_path, tmp_path / "study.db"), InlineExecutor(fakes.plain))

    def killing():
        left = iter(range(5))

        def scored(spec):
            if next(left, None) is None and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                server.kill()
            return fakes.evaluate(spec)

        return scored

    with pytest.raises(RunFolderError, match="Check that it is running and reachable"):
        run_search(search(tmp_path, location), InlineExecutor(killing))
    server.start()
    resumed = run_search(search(tmp_path, location), InlineExecutor(fakes.plain))
    assert scores(resumed) == scores(undisturbed)


def test_nobody_there_is_one_message():
    location = SharedStorage("postgresql+psycopg://me@127.0.0.1:1/db", "run")
    with pytest.raises(RunFolderError, match=r"127\.0\.0\.1:1/db cannot be used: .*refused"):
        check_storage(location, made=False, begun=False)
