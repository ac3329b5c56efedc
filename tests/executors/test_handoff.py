from __future__ import annotations

from autoprune.executors.handoff import Handoff, Instruction
from tests import fakes


def test_a_trial_that_takes_too_long_is_ended_and_lost() -> None:
    now, killed = [0.0], []
    handoff = Handoff(5.0, lambda: now[0])
    handoff.submit(fakes.spec(7))
    handoff.next("a")
    now[0] = 100.0  # waiting for a worker takes none of its time
    handoff.started("a", lambda: killed.append("a"))
    now[0] = 104.0
    handoff.end_overdue()
    assert not killed
    now[0] = 106.0
    handoff.end_overdue()
    handoff.end_overdue()
    assert killed == ["a"]
    handoff.worker_died("a", "a reason")
    result = handoff.finished.get()
    assert not isinstance(result, str)
    assert (result.number, result.status, result.seconds) == (7, "lost", 6.0)
    assert result.error == "it took longer than the limit of 5 s (--trial-timeout)"


def test_a_worker_that_died_says_how() -> None:
    handoff = Handoff()
    handoff.submit(fakes.spec(1))
    handoff.next("a")
    handoff.started("a", lambda: None)
    handoff.worker_died("a", "The actor died.\n Worker exit type: X Worker exit detail: the OOM killer")
    assert handoff.finished.get().error == "its worker died: the OOM killer"  # pyright: ignore


def test_a_result_counts_once() -> None:
    handoff = Handoff()
    spec = fakes.spec(1)
    handoff.submit(spec)
    handoff.next("a")
    handoff.done("a", fakes.evaluate(spec))
    handoff.worker_died("a", "too late")
    handoff.done("a", fakes.evaluate(spec))
    assert handoff.finished.get() == fakes.evaluate(spec)
    assert handoff.finished.empty()


def test_a_worker_that_cannot_be_created_ends_the_search() -> None:
    handoff = Handoff()
    handoff.submit(fakes.spec(1))
    handoff.next("a")
    handoff.worker_died("a", "error in its creation task: ModuleNotFoundError: no module named mine")
    assert "a worker could not start" in str(handoff.finished.get())


def test_orders() -> None:
    handoff = Handoff()
    handoff.submit(fakes.spec(1))
    assert handoff.next("a") == fakes.spec(1)
    assert handoff.next("b") is Instruction.NONE_NOW
    handoff.close()
    assert handoff.next("b") is Instruction.END
