from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoprune.errors import AutopruneError, UsageError
from autoprune.executors.process import ProcessExecutor
from tests import fakes


def test_a_worker_that_dies_at_start_is_not_started_for_ever():
    with ProcessExecutor(fakes.dying_at_start, workers=1) as executor:
        executor.submit(fakes.spec())
        with pytest.raises(AutopruneError, match=r"before its first trial \(killed by SIGKILL\)"):
            executor.wait()


def test_workers_get_their_thread_count_and_this_process_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with ProcessExecutor(fakes.environment, workers=1, threads=3) as executor:
        executor.submit(fakes.spec())
        result = executor.wait()
    assert result.measurement
    assert result.measurement.params == 3
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_close_leaves_no_process(tmp_path):
    executor = ProcessExecutor(functools.partial(fakes.logging_to, tmp_path / "log"), workers=2)
    for number in range(50):
        executor.submit(fakes.spec(number))
    executor.wait()
    processes = [worker.process for worker in executor._workers]
    executor.close()
    assert not any(process.is_alive() for process in processes)


def test_a_worker_begins_its_next_trial_before_its_result_is_used(tmp_path):
    log = tmp_path / "log"
    with ProcessExecutor(functools.partial(fakes.logging_to, log), workers=1) as executor:
        for number in range(2):
            executor.submit(fakes.spec(number))
        executor.wait()
        ends = time.monotonic() + 60
        while len(log.read_text().splitlines()) < 2:
            assert time.monotonic() < ends
            time.sleep(0.01)


def test_impossible_sizes_are_refused():
    with pytest.raises(UsageError, match="got 0 and 1"):
        ProcessExecutor(fakes.plain, workers=0)


_SEARCH = """
from autoprune.executors.process import ProcessExecutor
from tests import fakes

if __name__ == "__main__":
    with ProcessExecutor(fakes.interpreting, workers=1) as executor:
        executor.submit(fakes.spec())
        assert executor.wait().status == "done"
"""


def test_killed_workers_leak_no_semaphores(tmp_path):
    script = tmp_path / "search.py"
    script.write_text(_SEARCH)
    root = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert ran.stderr == ""
