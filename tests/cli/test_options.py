from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from autoprune.cli import main as cli
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

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    time.sleep(0.2)
    assert not ended


def test_a_host_that_goes_on_after_a_stopped_search_has_its_signals_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where Ray was loaded, or the clean-up takes longer than that of a process of its own may."""
    closed: list[bool] = []

    def search(**_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.2)
            closed.append(True)

    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.setattr(cli_options, "_END_SECONDS", 0.05)
    monkeypatch.setattr("autoprune.pipeline.search", search)
    monkeypatch.setattr(sys, "argv", ["autoprune", "search", "--run-dir", str(tmp_path / "x")])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    with pytest.raises(SystemExit, match="130"):
        cli.main()
    assert closed
    assert capsys.readouterr().out == "Stopped. Nothing was begun.\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


BUSY = """
import ctypes, hashlib, os, signal, sys, time
from autoprune.cli import options
from autoprune.executors.base import interrupts_later
options._END_SECONDS = 0.3

with options.interruptible(lambda: print("stopped", flush=True)):
    with interrupts_later():
        print("begun", flush=True)
        if sys.argv[1] == "library":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # many minutes in which no Python code runs
        time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "where"), [(signal.SIGINT, "start"), (signal.SIGINT, "library"), (signal.SIGTERM, "library")]
)
def test_a_signal_ends_what_does_not_listen_to_it(number: signal.Signals, where: str) -> None:
    """Such as Ray while it starts: handlers of Python wait until a library returns, and Ctrl-C until it has started."""
    with subprocess.Popen([sys.executable, "-c", BUSY, where], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.1)
        process.send_signal(number)
        try:
            assert process.communicate(timeout=30)[0] == "stopped\n"
        finally:
            process.kill()
        assert process.returncode == 128 + number


FORKS = """
import os, signal, sys, time
from autoprune.cli import options
options._END_SECONDS = 0.1

with options.interruptible(lambda: print("stopped", flush=True)):
    worker = os.fork()
    if not worker:
        try:
            time.sleep(60)
        finally:
            os._exit(0)
    time.sleep(0.2)
    os.kill(worker, signal.SIGTERM)
    os.waitpid(worker, 0)
    time.sleep(0.5)
"""


def test_a_signal_to_a_forked_worker_is_none_of_this_process() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


OWN_PROCESS = """
import atexit, os, signal, sys, time
import autoprune.pipeline
from autoprune.__main__ import main

def again():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)

def search(**_):
    again()

autoprune.pipeline.search = search
atexit.register(again)
sys.argv = ["autoprune", "search", "--run-dir", "absent"]
main()
"""


def test_the_command_ignores_further_signals_until_it_has_ended() -> None:
    done = subprocess.run([sys.executable, "-c", OWN_PROCESS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "Stopped. Nothing was begun.\n", "")


def test_in_another_thread_signals_are_left_alone() -> None:
    before, ran = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with interruptible(lambda: None) as received:
            ran.append((list(received), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [([], before)]


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
