from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.budgets import Limit
from autoprune.config import RunConfig
from autoprune.errors import CallbackError, UsageError
from autoprune.pipeline.callbacks import watchers
from autoprune.pipeline.events import Silent, TakesRemaining
from autoprune.records import Policy
from autoprune.trackers import Tracker
from autoprune.trials import Fidelity, FinishedTrial, Measurement, TrialResult

PROXY = Fidelity(name="proxy", rung=0)
SCORED = Measurement(
    score=0.9, loss=0.1, latency_ms=1.5, latency_source="predicted", params=10, macs=20, bytes=40, activation_bytes=8
)


def progress(**options: Any) -> Any:
    policy = Policy(space_id="s", widths={"a": 4})
    result = TrialResult(number=3, policy=policy, fidelity=PROXY, seed=0, sample_passes=7.0, **options)
    limit = Limit.of(latency_ms=2.0)
    free = Limit.of(params=5)  # no policy is within it yet
    return SimpleNamespace(
        last=result, rung="proxy", best_score={limit: 0.95}, budgets={limit: "50%", free: "params:5"}
    )


class Deaf(Tracker):
    """Fails at every note; notices its end."""

    closed = False

    def note(self, text: str) -> None:
        raise OSError("no space left")

    def close(self) -> None:
        self.closed = True


def test_a_function_gets_frozen_values_with_units() -> None:
    told: list[FinishedTrial] = []
    watch = watchers(None, told.append)
    watch.trials("Rung proxy", progress(status="done", measurement=SCORED))
    watch.trials("Rung proxy", progress(status="failed", error="no memory"))
    done, failed = told
    assert (done.number, done.rung, done.score, done.latency_ms_predicted, done.bytes) == (3, "proxy", 0.9, 1.5, 40)
    assert (failed.status, failed.score, failed.error, failed.sample_passes) == ("failed", None, "no memory", 7.0)
    assert done.best_scores == failed.best_scores == {"50%": 0.95}
    with pytest.raises(AttributeError):
        done.score = 1.0  # type: ignore[misc]


def test_every_receiver_is_told_and_the_time_only_where_one_wants_it() -> None:
    assert not isinstance(watchers([Silent(), Tracker()]), TakesRemaining)
    seen: list[object] = []
    timed = SimpleNamespace(stage=seen.append, note=seen.append, advance=seen.append, remaining=seen.append)
    watch = watchers([Silent(), timed])  # type: ignore[list-item]
    assert isinstance(watch, TakesRemaining)
    watch.stage("Search")
    watch.remaining("a minute")  # type: ignore[arg-type]
    assert seen == ["Search", "a minute"]


def test_a_receiver_that_fails_is_named_and_stays_failed(tmp_path: Path) -> None:
    deaf, other = Deaf(), Deaf()
    watch = watchers([deaf, other])

    def searched() -> None:
        with watch.watching(tmp_path, RunConfig()):
            with suppress(CallbackError):  # as where the search takes errors of a model as its own
                watch.note("a fact")
            watch.stage("Search")

    with pytest.raises(CallbackError, match=r"callback Deaf.note failed: OSError: no space left. Finished trials are"):
        searched()
    assert deaf.closed
    assert other.closed


@pytest.mark.parametrize("searched", [True, False])
def test_all_receivers_are_closed_though_one_fails(tmp_path: Path, searched: bool) -> None:
    class Stuck(Deaf):
        def close(self) -> None:
            super().close()
            raise OSError("no connection")

    receivers = [Stuck(), Deaf(), Stuck()]

    def search() -> None:
        with watchers(receivers).watching(tmp_path, RunConfig()):
            if not searched:
                raise KeyError("of the search")

    error = CallbackError if searched else KeyError
    with pytest.raises(error, match="Stuck.close failed: OSError: no connection" if searched else "of the search"):
        search()
    assert all(receiver.closed for receiver in receivers)


@pytest.mark.parametrize(
    ("events", "on_trial", "message"),
    [
        (object(), None, "`events` have the methods stage, note, advance; object has no stage. Derive from"),
        ([Silent(), print], None, "has no stage"),
        (None, "print", "`on_trial` is a function of a finished trial; got 'print'"),
    ],
)
def test_what_cannot_watch_is_refused(events: Any, on_trial: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        watchers(events, on_trial)


def test_the_word_console_shows_what_the_command_line_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = watchers(["console"])
    assert isinstance(told, TakesRemaining)
    with told.watching(tmp_path, RunConfig()):
        told.stage("Latency table")
        told.note("a fact")
    assert capsys.readouterr().out == "Latency table\n  a fact\n"
    with pytest.raises(UsageError, match=r"unknown receiver of events 'consol'. Did you mean 'console'"):
        watchers("consol")
