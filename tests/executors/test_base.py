"""Settings that started processes inherit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from autoprune.executors.base import interrupts_later, worker_threads

BLOCKED = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"


def interrupt() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_comes_when_what_was_started_runs() -> None:
    reached = []

    def start() -> None:
        with interrupts_later():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(subprocess.check_output([sys.executable, "-c", BLOCKED], text=True).strip())

    with pytest.raises(KeyboardInterrupt):
        start()
    assert reached == ["True"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_another_thread_was_told_comes_too() -> None:
    reached = []

    def start() -> None:
        with interrupts_later():
            thread = threading.Thread(target=interrupt)
            thread.start()
            thread.join()
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert reached == ["the end"]


def test_nothing_happens_without_an_interrupt_or_outside_of_the_main_thread() -> None:
    events = []

    def start() -> None:
        with interrupts_later():
            events.append("ran")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with interrupts_later():
        events.append("ran")
    assert events == ["ran", "ran"]


@pytest.mark.parametrize("before", [None, "5"])
def test_the_number_of_threads_is_that_of_workers_for_a_moment(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if before:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    with worker_threads(3):
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ.get("OMP_NUM_THREADS") == before
