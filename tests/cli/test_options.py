from __future__ import annotations

import os
import signal
import time

import pytest

from autoprune.cli import options as cli_options
from autoprune.cli.options import interruptible, minutes_of

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer on this system")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_destructor_swallowed_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_options, "_AGAIN_SECONDS", 0.05)

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001)  # where the handler raises

    def work() -> None:
        Dying()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            time.sleep(0.001)

    with interruptible() as received, pytest.raises(KeyboardInterrupt):
        work()
    assert received == [signal.SIGTERM]


def test_nothing_interrupts_what_is_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_options, "_AGAIN_SECONDS", 0.02)
    closed: list[bool] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            closed.append(True)

    with interruptible() as received, pytest.raises(KeyboardInterrupt):
        work()
    assert closed
    assert received == [signal.SIGINT, signal.SIGINT]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90s", 1.5), ("30m", 30), ("1h30m", 90), ("1.5H", 90), ("1h 1m 30s", 61.5)],
)
def test_times(text: str, minutes: float) -> None:
    assert minutes_of(text) == pytest.approx(minutes)
