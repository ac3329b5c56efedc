"""Losses that a search on a Ray cluster survives or reports: a node, the controller, the head."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from autoprune.executors.cluster import authenticate
from autoprune.executors.inline import InlineExecutor
from autoprune.search.controller import run_search
from tests import fakes
from tests.search.test_controller import ROOT
from tests.study.test_faults import scores, search, states

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return scores(run_search(search(tmp_path_factory.mktemp("undisturbed")), InlineExecutor(fakes.plain)))


@pytest.fixture
def cluster():
    """A head without CPUs and two nodes with one each, all processes of this host."""
    authenticate(None)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_worker_node_is_killed(tmp_path, undisturbed, cluster):
    from autoprune.executors.ray import RayExecutor

    nodes = list(cluster.worker_nodes)

    def kill(progress):
        if progress.rung == "proxy" and progress.done == 5:
            cluster.remove_node(nodes[0], allow_graceful=False)

    factory = functools.partial(fakes.logging_to, tmp_path / "log")
    with RayExecutor(factory, address=cluster.address) as executor:
        assert executor.slots == 2
        assert scores(run_search(search(tmp_path), executor, fakes.Told(kill))) == undisturbed
    assert states(tmp_path) == {"COMPLETE"}


SCRIPT = """
    import functools, sys
    from pathlib import Path
    from autoprune.executors.cluster import authenticate

    if __name__ == "__main__":
        folder, address = Path(sys.argv[1]), sys.argv[2] or None
        authenticate(address)
        from autoprune.search.controller import run_search
        from autoprune.executors import ray
        from tests import fakes
        factory = functools.partial(fakes.logging_to, folder / "log")
        with ray.RayExecutor(factory, address=address, workers=2) as executor:
            print("session", ray.session_name(), flush=True)
            search = fakes.search(folder, strategy="random")
            run_search(search, executor, fakes.Told(lambda e: print(e.rung, e.done, flush=True)))
"""


def started(folder, address, until):
    """A search on Ray in another process, once it has printed a line; and the name of its Ray session."""
    script = folder / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    process = subprocess.Popen(
        [sys.executable, script, folder, address],
        stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    session = ""
    for line in process.stdout:
        if line.startswith("session "):
            session = line.split()[1]
        if line.strip() == until:
            return process, session
    raise AssertionError("the search ended early")


def alive(session):
    """Processes that have the name of the session in their command line."""
    names = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if session.encode() in path.read_bytes():
                names.append(path.parent.name)
        except OSError:
            continue
    return names


@pytest.mark.slow
def test_the_controller_is_killed_and_leaves_no_process(tmp_path, undisturbed):
    process, session = started(tmp_path, "", "proxy 6")
    with process:
        assert len(alive(session)) > 3
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while alive(session):
        assert time.monotonic() < deadline, f"Ray's processes outlived their driver: {alive(session)}"
        time.sleep(0.5)
    assert scores(run_search(search(tmp_path), InlineExecutor(fakes.plain))) == undisturbed
    assert "RUNNING" not in states(tmp_path)


@pytest.mark.slow
def test_the_head_is_killed(tmp_path, undisturbed, cluster):
    process, _ = started(tmp_path, cluster.address, "proxy 6")
    with process:
        cluster.head_node.kill_gcs_server(check_alive=False)
        assert process.wait(timeout=180) != 0
    assert scores(run_search(search(tmp_path), InlineExecutor(fakes.plain))) == undisturbed
    assert "RUNNING" not in states(tmp_path)
