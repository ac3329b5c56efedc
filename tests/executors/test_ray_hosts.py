"""A search on Ray over three hosts that lose each other: network namespaces with addresses of their own.

Run by `scripts/test_faults.sh`; needs root and `ip`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoprune.executors.inline import InlineExecutor
from autoprune.search.controller import run_search
from tests import fakes
from tests.executors.test_ray_faults import SCRIPT
from tests.search.test_controller import ROOT
from tests.study.test_faults import scores, search, states

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and `ip`"),
]

HEAD, *WORKERS = HOSTS = ("10.77.31.1", "10.77.31.2", "10.77.31.3")
BRIDGE = "autoprune-br"
RAY = str(Path(sys.executable).with_name("ray"))
ALIVE = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def name_of(host: str) -> str:
    return f"autoprune-{host.rpartition('.')[2]}"


def inside(host: str, *command: str | Path, **options: Any) -> subprocess.Popen[str]:
    in_namespace = ["ip", "netns", "exec", name_of(host), *command]
    return subprocess.Popen(in_namespace, text=True, start_new_session=True, **options)


@pytest.fixture
def hosts() -> Iterator[tuple[str, ...]]:
    """Three namespaces on one bridge; no namespace is left afterwards."""
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("link", "set", BRIDGE, "up")
    try:
        for host in HOSTS:
            name = name_of(host)
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{host}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield HOSTS
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", name_of(host)], check=False)
            subprocess.run(["ip", "link", "delete", name_of(host)], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    token = tmp_path / "token"
    token.write_text("7" * 64)
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    return os.environ | settings | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def cluster(hosts: tuple[str, ...], environment: dict[str, str]) -> Iterator[str]:
    """`ray start` on every host; the head runs no trials."""
    nodes = []
    quiet: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    address = f"{HEAD}:6379"
    try:
        head = ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"]
        nodes.append(inside(HEAD, RAY, "start", "--block", f"--node-ip-address={HEAD}", *head, **quiet))
        deadline = time.monotonic() + 120
        while inside(HEAD, RAY, "health-check", f"--address={address}", **quiet).wait() != 0:
            assert time.monotonic() < deadline, "the head did not start"
            time.sleep(0.5)
        for number, host in enumerate(WORKERS, 2):  # one after the other: they share the session's folder
            joins = [f"--address={address}", "--num-cpus=1", f"--node-ip-address={host}"]
            nodes.append(inside(host, RAY, "start", "--block", *joins, **quiet))
            while inside(HEAD, sys.executable, "-c", ALIVE, address, str(number), **quiet).wait() != 0:
                assert time.monotonic() < deadline, f"{host} did not join"
        yield address
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(timeout=90)  # one that was cut off looks for its head for half a minute first


@pytest.mark.parametrize("heals_after_s", [None, 8.0])
def test_a_host_is_cut_off(
    tmp_path: Path, cluster: str, environment: dict[str, str], heals_after_s: float | None
) -> None:
    """For good, or for a time in which it runs on, unheard."""
    before, folder, script = tmp_path / "undisturbed", tmp_path / "disturbed", tmp_path / "run.py"
    before.mkdir()
    folder.mkdir()
    undisturbed = scores(run_search(search(before), InlineExecutor(fakes.plain)))
    script.write_text(textwrap.dedent(SCRIPT))
    lines: list[str] = []
    with inside(HEAD, sys.executable, script, folder, cluster, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout
        limit = threading.Timer(300, process.kill)
        limit.daemon = True
        limit.start()
        for line in process.stdout:
            lines.append(line.strip())
            if line.strip() == "proxy 6":
                ip("link", "set", name_of(WORKERS[0]), "down")
                if heals_after_s:
                    healing = threading.Timer(heals_after_s, ip, ("link", "set", name_of(WORKERS[0]), "up"))
                    healing.daemon = True
                    healing.start()
        assert process.wait(timeout=60) == 0, lines
        limit.cancel()
    assert scores(run_search(search(folder), InlineExecutor(fakes.plain))) == undisturbed
    assert states(folder) == {"COMPLETE"}
