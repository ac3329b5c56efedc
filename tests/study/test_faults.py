"""Faults that really happen: after each, the same call finds what an undisturbed search finds."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from autoprune.errors import RunFolderError
from autoprune.executors.inline import InlineExecutor
from autoprune.executors.process import ProcessExecutor
from autoprune.search.controller import run_search
from autoprune.study.optuna_private import close_storage, study_id
from autoprune.study.storage import open_storage
from tests import fakes
from tests.search.test_controller import ROOT, assert_gone


def scores(outcome):
    return {rung: {r.policy: r.measurement for r in results} for rung, results in outcome.results.items()}


def search(folder):
    return fakes.search(folder, strategy="random")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return scores(run_search(search(tmp_path_factory.mktemp("undisturbed")), InlineExecutor(fakes.plain)))


def states(folder):
    storage = open_storage(folder / "study.db")
    states = {t.state.name for s in storage.get_all_studies() for t in storage.get_all_trials(study_id(s))}
    close_storage(storage)
    return states


def test_workers_that_are_killed_hang_or_run_out_of_memory_and_a_loss_that_is_nan(tmp_path, undisturbed):
    marks = tmp_path / "marks"
    marks.mkdir()
    factory = functools.partial(fakes.faulty, marks, "killed", "nan", "memory", "hang")
    with ProcessExecutor(factory, workers=2, timeout_s=2) as executor:
        outcome = run_search(search(tmp_path), executor)
    assert len(list(marks.iterdir())) >= 6
    assert scores(outcome) == undisturbed
    assert {r.attempt for rs in outcome.results.values() for r in rs} == {1, 2}
    assert states(tmp_path) == {"COMPLETE"}


SCRIPT = """
    import functools, sys
    from pathlib import Path
    from autoprune.cli.options import interruptible
    from autoprune.search.controller import run_search
    from autoprune.executors.process import ProcessExecutor
    from tests import fakes

    if __name__ == "__main__":
        folder = Path(sys.argv[1])
        factory = functools.partial(fakes.logging_to, folder / "log")
        try:
            with interruptible() as received, ProcessExecutor(factory) as executor:
                search = fakes.search(folder, strategy="random")
                run_search(search, executor, fakes.Told(lambda e: print(e.rung, e.done, flush=True)))
        except KeyboardInterrupt:
            sys.exit(128 + received[0])
"""


def started(folder, until):
    """A search in a session of its own, once it has printed a line."""
    script = folder / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, folder],
        stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    assert until in (line.strip() for line in process.stdout)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_nothing_is_lost(tmp_path, undisturbed, number):
    with started(tmp_path, "proxy 9") as process:
        begin = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
        assert time.monotonic() - begin < 10
    assert_gone({int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()})
    assert scores(run_search(search(tmp_path), InlineExecutor(fakes.plain))) == undisturbed
    assert "RUNNING" not in states(tmp_path)


def test_the_whole_process_group_is_killed(tmp_path, undisturbed):
    with started(tmp_path, "proxy 9") as process:
        os.killpg(process.pid, signal.SIGKILL)
    assert_gone({int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()})
    assert scores(run_search(search(tmp_path), InlineExecutor(fakes.plain))) == undisturbed


def fill(path):
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk(tmp_path, undisturbed):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)
    try:
        filler = disk / "filler"

        def filling():
            left = iter(range(9))

            def scored(spec):
                if next(left, None) is None and not filler.exists():
                    fill(filler)
                return fakes.evaluate(spec)

            return scored

        with pytest.raises(RunFolderError, match=r"disk.*What was finished is kept"):
            run_search(search(disk), InlineExecutor(filling))
        filler.unlink()
        assert scores(run_search(search(disk), InlineExecutor(fakes.plain))) == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("jump_s", [-86400.0, 86400.0])
def test_a_clock_that_jumps(tmp_path, undisturbed, monkeypatch, jump_s):
    """Nothing but what is shown may come from the wall clock; so it is enough that this process sees it jump."""
    real = time.time
    calls = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + jump_s * (next(calls) % 2))
    with ProcessExecutor(fakes.shuffling, workers=2, timeout_s=30) as executor:
        assert scores(run_search(search(tmp_path), executor)) == undisturbed


def disturbed(folder, *words):
    """Run the command on a simulated device; root must give up the right to write everywhere."""
    root = os.getuid() == 0
    if root and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    run = [*(["setpriv", "--bounding-set=-dac_override"] if root else []), sys.executable]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    program = ROOT / "tests/disturbed_search.py"
    return subprocess.run([*run, program, folder, *words], capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["Latency table", "Search", "Export and verification"])
def test_a_folder_that_becomes_read_only_is_one_message_and_the_search_goes_on_later(tmp_path, stage):
    done = disturbed(tmp_path / "run", stage, "read-only")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be written: Permission denied" in done.stderr
    for path in [tmp_path / "run", *(p for p in (tmp_path / "run").rglob("*") if p.is_dir())]:
        path.chmod(0o700)
    assert disturbed(tmp_path / "run", "none", "read-only").returncode == 0
    assert (tmp_path / "run" / "front.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["import", "Latency table", "Full fine-tune", "Export and verification"])
def test_two_interrupts_in_a_row_are_one_message_and_the_search_goes_on_later(tmp_path, stage):
    done = disturbed(tmp_path / "run", stage, "interrupted")
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.count("Stopped.") == 1
    done = disturbed(tmp_path / "run", "none", "interrupted")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "front.json").exists()
