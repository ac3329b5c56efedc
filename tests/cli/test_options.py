from __future__ import annotations

import os
import signal
import subprocess
import sys
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


SCRIPT = """
import os, signal, sys, time
from autoprune.cli import options
options._END_SECONDS = 0.3

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)

with options.interruptible(lambda: print("stopped", flush=True)):
    try:
        Dying() if sys.argv[1] == "dropped" else os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        if sys.argv[1] == "hangs":
            time.sleep(5)
os.kill(os.getpid(), signal.SIGINT)
print("stopped")
sys.exit(130)
"""


def test_a_process_that_goes_on_after_its_clean_up_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(cli_options, "_END_SECONDS", 0.05)
    monkeypatch.setattr(cli_options, "end_at_once", ended.append)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupted() -> None:
        with interruptible(lambda: None):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for number, handler in before.items():
        signal.signal(number, handler)
    time.sleep(0.2)
    assert not ended


@pytest.mark.parametrize("how", ["dropped", "hangs", "ends"])
def test_a_process_that_was_told_to_end_does_so_soon_and_without_a_traceback(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "stopped\n", "")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90s", 1.5), ("30m", 30), ("1h30m", 90), ("1.5H", 90), ("1h 1m 30s", 61.5)],
)
def test_times(text: str, minutes: float) -> None:
    assert minutes_of(text) == pytest.approx(minutes)
