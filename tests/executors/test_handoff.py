from __future__ import annotations

from autoprune.executors.handoff import Link, Order
from tests import fakes


def test_a_trial_that_takes_too_long_is_ended_and_lost() -> None:
    now, killed = [0.0], []
    link = Link(5.0, lambda: now[0])
    link.submit(fakes.spec(7))
    link.next("a")
    now[0] = 100.0  # waiting for a worker takes none of its time
    link.started("a", lambda: killed.append("a"))
    now[0] = 104.0
    link.end_overdue()
    assert not killed
    now[0] = 106.0
    link.end_overdue()
    link.end_overdue()
    assert killed == ["a"]
    link.worker_died("a", "whatever")
    found = link.finished.get()
    assert not isinstance(found, str)
    assert (found.number, found.status, found.seconds) == (7, "lost", 6.0)
    assert found.error == "it took longer than the limit of 5 s (--trial-timeout)"


def test_a_worker_that_died_says_how() -> None:
    link = Link()
    link.submit(fakes.spec(1))
    link.next("a")
    link.started("a", lambda: None)
    link.worker_died("a", "The actor died.\n Worker exit type: X Worker exit detail: the OOM killer")
    assert link.finished.get().error == "its worker died: the OOM killer"  # pyright: ignore


def test_a_result_counts_once() -> None:
    link = Link()
    spec = fakes.spec(1)
    link.submit(spec)
    link.next("a")
    link.done("a", fakes.evaluate(spec))
    link.worker_died("a", "too late")
    link.done("a", fakes.evaluate(spec))
    assert link.finished.get() == fakes.evaluate(spec)
    assert link.finished.empty()


def test_a_worker_that_cannot_be_created_ends_the_search() -> None:
    link = Link()
    link.submit(fakes.spec(1))
    link.next("a")
    link.worker_died("a", "error in its creation task: ModuleNotFoundError: no module named mine")
    assert "a worker could not start" in str(link.finished.get())


def test_orders() -> None:
    link = Link()
    link.submit(fakes.spec(1))
    assert link.next("a") == fakes.spec(1)
    assert link.next("b") is Order.NONE_NOW
    link.close()
    assert link.next("b") is Order.END
