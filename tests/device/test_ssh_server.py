"""Measuring on another host through a real OpenSSH server on this one."""

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoprune.device.address import Address
from autoprune.device.connect import make_target
from autoprune.device.runner import kernel_times, time_models
from autoprune.device.ssh import ask_fingerprint
from autoprune.errors import LatencyError
from tests.device.ssh_host import CPU, PYTHON
from tests.machines import QUICK

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def _answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


@pytest.fixture
def server(tmp_path, tmp_path_factory, monkeypatch):
    """Port of an OpenSSH server on this host, with keys of its own that the client is pointed to."""
    client = shutil.which("ssh")
    if SSHD is None or client is None or shutil.which("ssh-keygen") is None or os.geteuid() != 0:
        pytest.skip("needs OpenSSH's server and client, and root")
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized_keys")
    port = _free_port()
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile {tmp_path}/pid\n"
        f"AuthorizedKeysFile {tmp_path}/authorized_keys\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nPrintLastLog no\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"IdentityFile {tmp_path}/user\nIdentitiesOnly yes\nUserKnownHostsFile {tmp_path}/known\n"
        "StrictHostKeyChecking accept-new\nLogLevel ERROR\n"
    )
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {client} -F {tmp_path}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    command = [SSHD, "-D", "-f", str(tmp_path / "sshd_config"), "-E", str(tmp_path / "log")]
    shared = tmp_path_factory.getbasetemp().parent  # by all processes that run tests
    with (shared / "sshd.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        separation = Path("/run/sshd")  # the server demands it
        created = not separation.exists()
        separation.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start: {(tmp_path / 'log').read_text()}")
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.wait(timeout=20)
            if created:
                separation.rmdir()


def test_a_real_server_measures(server, target, models, feeds):
    remote = make_target(f"ssh://root@127.0.0.1:{server}{PYTHON}")
    assert remote.fingerprint() == target.fingerprint()
    kits = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "autoprune"  # the home that the server knows
    before = set(kits.glob("kit-*"))
    timings = time_models(models[1:], remote, feeds, reference=models[0], protocol=QUICK)
    assert len(timings.ratios) == 3
    assert np.isfinite(timings.ratios).all()
    (kernels,) = kernel_times(models[:1], remote, feeds)
    assert kernels.names
    assert set(kits.glob("kit-*")) == before


def _connection(server):
    """Process of the server's connection that runs a measurement, once it does."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if b"measure.py ." not in path.read_bytes() or b"sh\0-c" not in path.read_bytes():
                    continue
                parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
                if b"sshd" in Path(f"/proc/{parent}/cmdline").read_bytes():
                    return parent
        time.sleep(0.02)
    raise AssertionError("no measurement began")


@pytest.mark.slow
def test_a_real_connection_that_drops_is_one_message_and_the_measurement_goes_on(server, models, feeds):
    remote = make_target(f"ssh://root@127.0.0.1:{server}{PYTHON}")
    kits = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "autoprune"
    before = set(kits.glob("kit-*"))
    dropping = threading.Thread(target=lambda: os.kill(_connection(server), signal.SIGKILL))
    dropping.start()
    with pytest.raises(LatencyError, match=r"^root@127\.0\.0\.1:\d+.*(closed|reset|exit code 255)"):
        time_models(models[1:], remote, feeds, reference=models[0], protocol=QUICK)
    dropping.join()
    timings = time_models(models[1:], remote, feeds, reference=models[0], protocol=QUICK)
    assert len(timings.ratios) == 3
    assert set(kits.glob("kit-*")) == before


def test_a_real_client_says_why_it_cannot_connect(server, tmp_path):
    address = Address(login="root@127.0.0.1", port=server)
    free = _free_port()
    with pytest.raises(LatencyError, match=rf"root@127\.0\.0\.1:{free}: .*Connection refused"):
        ask_fingerprint(replace(address, port=free), CPU, 1)
    (tmp_path / "authorized_keys").write_text("")
    with pytest.raises(LatencyError, match=r"Permission denied \(publickey\)"):
        ask_fingerprint(address, CPU, 1)
