from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from autoprune import lease
from autoprune.errors import RunFolderError
from autoprune.lease import Holder, held, holder, is_gone

BEAT = 0.02


def test_a_second_holder_is_told_who_and_since_when(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with held(path):
        mine = holder(path)
        assert mine is not None
        message = f"in use by process {os.getpid()} on .* since {mine.since[:10]}"
        with pytest.raises(RunFolderError, match=message), held(path):
            pass
    assert holder(path) is None
    with held(path):
        pass


def test_a_lease_that_is_no_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"the lease .* cannot be used: Is a directory"), held(tmp_path):
        pass


def test_the_lease_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = (
        f"import time\nfrom pathlib import Path\nfrom autoprune.lease import held\n"
        f"with held(Path({str(path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=f"process {process.pid} "), held(path):
            pass
        process.send_signal(signal.SIGKILL)
    left = holder(path)
    assert left is not None
    assert is_gone(left)
    assert not is_gone(Holder.here())
    assert not is_gone(dataclasses.replace(left, host="another 1"))
    with held(path):
        assert holder(path).pid == os.getpid()  # pyright: ignore[reportOptionalMemberAccess]


def elsewhere(path: Path, beat: int = 0) -> None:
    path.write_text(json.dumps(asdict(dataclasses.replace(Holder.here(), host="another 1", beat=beat))))


def test_a_holder_on_another_host_is_alive_while_its_heart_beats(tmp_path: Path) -> None:
    path, stop = tmp_path / ".lock", threading.Event()
    elsewhere(path)

    def beat() -> None:
        number = 0
        while not stop.wait(BEAT):
            elsewhere(path, number := number + 1)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunFolderError, match="on another since"), held(path, BEAT):
            pass
    finally:
        stop.set()
        thread.join()
    with held(path, BEAT):
        pass


def test_clocks_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    elsewhere(path)
    os.utime(path, (time.time() + 1e6, time.time() + 1e6))
    with held(path, BEAT):
        pass


@pytest.mark.parametrize("living", [True, False])
def test_without_file_locks_the_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, living: bool) -> None:
    path = tmp_path / ".lock"
    monkeypatch.setattr(lease, "_lock", lambda file: None)
    path.write_text(json.dumps(asdict(dataclasses.replace(Holder.here(), **({} if living else {"born": "1"})))))
    if living:
        with pytest.raises(RunFolderError, match="in use by process"), held(path):
            pass
    else:
        with held(path):
            pass


def test_a_file_that_names_nobody_is_no_lease(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text("1234")
    with held(path):
        pass
