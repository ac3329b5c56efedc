"""What every executor promises."""

from __future__ import annotations

import pytest

from autoprune.search.controller import run_search
from autoprune.search.executors.inline import InlineExecutor
from autoprune.search.executors.process import ProcessExecutor
from tests.search import fakes

EXECUTORS = {"inline": InlineExecutor, "process": ProcessExecutor}


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return EXECUTORS[request.param]


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


# TPE starts to model after ten trials; random proposals need no history.
@pytest.mark.parametrize(("strategy", "trials"), [("direct", 14), ("random", 10)])
def test_executors_find_the_same(tmp_path, strategy, trials):
    effort = fakes.Effort(**vars(fakes.EFFORT) | {"trials": trials})
    found = {}
    for name, kind in EXECUTORS.items():
        (tmp_path / name).mkdir()
        with kind(fakes.shuffling) as executor:
            search = fakes.search(tmp_path / name, strategy=strategy, effort=effort)
            found[name] = run_search(search, executor)
    assert found["inline"] == found["process"]
