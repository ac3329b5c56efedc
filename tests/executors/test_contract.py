"""Contract of every executor."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from autoprune.errors import AutopruneError
from autoprune.executors.inline import InlineExecutor
from autoprune.executors.process import ProcessExecutor
from autoprune.search.controller import run_search
from tests import fakes


@pytest.fixture(params=["inline", "process", "ray"])
def executor(request):
    """How an executor is opened, given a factory."""
    if request.param == "ray":
        return request.getfixturevalue("ray_executor")
    return {"inline": InlineExecutor, "process": ProcessExecutor}[request.param]


def collect(executor, specs):
    for spec in specs:
        executor.submit(spec)
    return sorted((executor.wait() for _ in specs), key=lambda r: r.number)


def test_every_trial_comes_back_once_with_its_own_result(executor):
    specs = [fakes.spec(i, unit0=2 + i) for i in range(7)]
    with executor(fakes.shuffling) as running:
        assert running.slots >= 1
        assert collect(running, specs) == [fakes.evaluate(spec) for spec in specs]
        assert collect(running, specs[:2]) == [fakes.evaluate(spec) for spec in specs[:2]], "it can be used again"


def test_a_trial_that_raises_is_failed_and_the_others_go_on(executor):
    with executor(fakes.raising) as running:
        results = collect(running, [fakes.spec(i) for i in range(4)])
    assert [r.status for r in results] == ["done", "failed", "done", "failed"]
    assert results[1].error == "TrialError: odd trials do not work"


@pytest.fixture(scope="module")
def inline_outcome(tmp_path_factory):
    """A search and what it finds; TPE starts to model after ten trials."""
    effort = fakes.Effort(**vars(fakes.EFFORT) | {"trials": 14})
    search = fakes.search(tmp_path_factory.mktemp("inline"), strategy="direct", effort=effort)
    return search, run_search(search, InlineExecutor(fakes.plain))


def test_executors_find_the_same(tmp_path, executor, inline_outcome):
    search, outcome = inline_outcome
    with executor(fakes.shuffling) as running:
        assert run_search(dataclasses.replace(search, location=tmp_path / "study.db"), running) == outcome


@pytest.mark.parametrize("name", ["process_executor", "ray_executor"])
def test_a_trial_whose_worker_dies_or_hangs_is_lost_and_the_others_go_on(request, tmp_path, name):
    specs = [fakes.spec(i, unit0=2 + i) for i in range(6)]
    with request.getfixturevalue(name)(
        functools.partial(fakes.faulty, tmp_path, "killed", "hang"), timeout_s=2
    ) as running:
        first = collect(running, specs)
        again = [dataclasses.replace(spec, attempt=2) for spec in (specs[1], specs[4])]
        second = collect(running, again)
    assert [r.status for r in first] == ["done", "lost", "done", "done", "lost", "done"]
    assert first[1].error.startswith("its worker died")
    assert first[4].error == "it took longer than the limit of 2 s (--trial-timeout)"
    assert second == [fakes.evaluate(spec) for spec in again]


@pytest.mark.parametrize("name", ["process_executor", "ray_executor"])
def test_a_worker_that_cannot_prepare_is_an_error(request, name):
    with request.getfixturevalue(name)(fakes.broken) as running:
        running.submit(fakes.spec())
        with pytest.raises(AutopruneError, match="could not prepare for trials: TrialError: no data today"):
            running.wait()
