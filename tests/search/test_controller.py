from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.errors import BudgetError, TrialError
from autoprune.executors.inline import InlineExecutor
from autoprune.search.controller import run_search
from tests import fakes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    search = fakes.search(tmp_path_factory.mktemp("undisturbed"), strategy="random")
    return run_search(search, InlineExecutor(fakes.plain))


def by_rung(outcome):
    return {rung: {r.policy for r in rs if r.status == "done"} for rung, rs in outcome.results.items()}


class Watcher:
    """Keeps the progress, and what had finished when a rung began."""

    def __init__(self):
        self.events, self.begun = [], []

    def begin(self, rung):
        self.begun.append((rung, len(self.events)))

    def __call__(self, progress):
        self.events.append(progress)


def test_a_search_fills_its_rungs_and_beats_the_baseline(tmp_path):
    watcher = Watcher()
    results = run_search(fakes.search(tmp_path), InlineExecutor(fakes.plain), watcher).results
    events = watcher.events
    assert {rung: len(rs) for rung, rs in results.items()}["proxy"] == 18
    assert results["brief"]
    assert {r.fidelity.name for r in results["brief"]} == {"brief"}
    best = {r.policy: r.measurement.loss for r in results["proxy"] if r.measurement}
    baselines = [r.policy for r in results["proxy"]][: len(fakes.LIMITS)]
    assert set(baselines) <= {r.policy for r in results["brief"]}
    for limit, baseline in zip(fakes.LIMITS, baselines, strict=True):
        assert min(loss for p, loss in best.items() if fits(fakes.predict([p])[0], limit)) < best[baseline]
    assert [e.done for e in events if e.rung == "proxy"] == list(range(1, 19))
    assert {("proxy", 0), ("brief", 18)} <= set(watcher.begun)
    assert set(events[-1].best_loss) == set(fakes.LIMITS)
    assert (events[-1].rung, events[-1].done) == ("brief", events[-1].total)


def test_policies_by_dense_weights_are_scored_and_briefly_fine_tuned_beside_the_uniform_ones(tmp_path):
    worst = fakes.SPACE.smallest()
    results = run_search(fakes.search(tmp_path, shared_out={worst: "LAMP"}), InlineExecutor(fakes.plain)).results
    assert worst in {r.policy for r in results["proxy"][:3]}
    assert worst in {r.policy for r in results["brief"]}


class Odd:
    """A device on which policies with an odd first width take longer than predicted."""

    def __init__(self, trusted=True):
        self.trusted = trusted

    def as_predicted(self, proxies):
        return self.trusted

    def meets(self, policies, limit):
        return [policy.widths["unit0"] % 2 == 0 for policy in policies]


def test_only_policies_that_meet_their_limit_when_measured_are_fine_tuned(tmp_path):
    results = run_search(fakes.search(tmp_path), InlineExecutor(fakes.plain), measured=Odd()).results
    baselines = {r.policy for r in results["proxy"][: len(fakes.LIMITS)]}
    tuned = {r.policy for r in results["brief"]} - baselines
    assert tuned
    assert all(policy.widths["unit0"] % 2 == 0 for policy in tuned)


def test_what_an_earlier_search_scored_is_promoted_too(tmp_path, undisturbed):
    run_search(fakes.search(tmp_path, strategy="random"), InlineExecutor(fakes.plain))
    again = run_search(fakes.search(tmp_path, strategy="uniform"), InlineExecutor(fakes.plain))
    assert by_rung(again)["brief"] == by_rung(undisturbed)["brief"]


def test_nothing_is_fine_tuned_where_predictions_are_wrong(tmp_path):
    results = run_search(fakes.search(tmp_path), InlineExecutor(fakes.plain), measured=Odd(trusted=False)).results
    assert set(results) == {"proxy"}


def test_running_it_again_changes_nothing_and_evaluates_nothing(tmp_path):
    first = run_search(fakes.search(tmp_path), InlineExecutor(fakes.plain))
    log = tmp_path / "log"
    again = run_search(fakes.search(tmp_path), InlineExecutor(lambda: fakes.logging_to(log)))
    assert again == first
    assert not log.exists()


def test_more_trials_continue_a_finished_search(tmp_path, undisturbed):
    fewer = fakes.Effort(**vars(fakes.EFFORT) | {"trials": 11})
    first = run_search(fakes.search(tmp_path, strategy="random", effort=fewer), InlineExecutor(fakes.plain))
    second = run_search(fakes.search(tmp_path, strategy="random"), InlineExecutor(fakes.plain))
    assert by_rung(first)["proxy"] < by_rung(second)["proxy"] == by_rung(undisturbed)["proxy"]


def test_the_uniform_strategy_scores_the_baselines_only(tmp_path):
    results = run_search(fakes.search(tmp_path, strategy="uniform"), InlineExecutor(fakes.plain)).results
    assert {rung: len(rs) for rung, rs in results.items()} == {"proxy": 2, "brief": 2}


def test_an_interrupted_search_can_be_resumed(tmp_path, undisturbed):
    def interrupting():
        left = iter(range(11))

        def scored(spec):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return fakes.evaluate(spec)

        return scored

    search = fakes.search(tmp_path, strategy="random")
    with pytest.raises(KeyboardInterrupt):
        run_search(search, InlineExecutor(interrupting))
    assert by_rung(run_search(search, InlineExecutor(fakes.plain))) == by_rung(undisturbed)


def test_a_rung_where_everything_failed_quotes_the_most_frequent_reason(tmp_path):
    def failing():
        def scored(spec):
            raise ValueError("rare" if spec.number == 3 else "frequent")

        return scored

    with pytest.raises(
        TrialError, match=r"all 18 trials of rung 'proxy' failed, 17 of them with: ValueError: frequent"
    ):
        run_search(fakes.search(tmp_path), InlineExecutor(failing))


def test_a_budget_below_the_floor_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(BudgetError, match="the smallest policy of the space takes"):
        run_search(fakes.search(tmp_path, limits=(Limit.of(latency_ms=1),)), InlineExecutor(fakes.plain))
    assert not (tmp_path / "study.db").exists()


SCRIPT = """
    import functools, sys
    from pathlib import Path
    from autoprune.search.controller import run_search
    from autoprune.executors.inline import InlineExecutor
    from autoprune.executors.process import ProcessExecutor
    from tests import fakes

    class Watcher:
        def begin(self, rung):
            pass

        def __call__(self, progress):
            print(progress.rung, progress.done, flush=True)

    if __name__ == "__main__":
        folder, kind = Path(sys.argv[1]), sys.argv[2]
        factory = functools.partial(fakes.logging_to, folder / "log")
        executor = InlineExecutor(factory) if kind == "inline" else ProcessExecutor(factory)
        run_search(fakes.search(folder, strategy="random"), executor, Watcher())
"""


@pytest.mark.parametrize(("kind", "kill_at"), [("inline", "proxy 13"), ("process", "brief 2")])
def test_kill_9_loses_and_repeats_nothing(tmp_path, undisturbed, kind, kill_at):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script, tmp_path, kind], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        seen = []
        for line in process.stdout:
            seen.append(line.strip())
            if seen[-1] == kill_at:
                break
        process.send_signal(signal.SIGKILL)
    assert seen[-1] == kill_at

    log = tmp_path / "log"
    assert_gone({int(line.split()[0]) for line in log.read_text().splitlines()})
    resumed = run_search(fakes.search(tmp_path, strategy="random"), InlineExecutor(lambda: fakes.logging_to(log)))
    assert by_rung(resumed) == by_rung(undisturbed)
    evaluated = Counter(line.split(maxsplit=1)[1] for line in log.read_text().splitlines())
    # Two more than were reported may have finished before the kill; those still running then are run again.
    assert evaluated.total() - len(evaluated) <= 2
    assert len(evaluated) == sum(map(len, resumed.results.values()))


def assert_gone(pids):
    """Wait until none of the processes is alive; a zombie counts as dead."""
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
