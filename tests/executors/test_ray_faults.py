"""Losses that a search on a Ray cluster survives or reports: a node, the controller, the head."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
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


@pytest.mark.slow
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
    from autoprune.cli.options import end_at_once, interruptible
    from autoprune.executors.cluster import authenticate

    def run(folder, address):
        authenticate(address)
        from autoprune.search.controller import run_search
        from autoprune.executors import ray
        from tests import fakes
        factory = functools.partial(fakes.logging_to, folder / "log")
        print("joining", flush=True)
        with ray.RayExecutor(factory, address=address, workers=2) as executor:
            node = ray.ray._private.worker.global_worker.node
            print("session", Path(node.get_session_dir_path()).name, flush=True)
            search = fakes.search(folder, strategy="random")
            run_search(search, executor, fakes.Told(lambda e: print(e.rung, e.done, flush=True)))

    if __name__ == "__main__":
        with interruptible(lambda: print("late", flush=True)) as received:
            try:
                run(Path(sys.argv[1]), sys.argv[2] or None)
            except KeyboardInterrupt:
                end_at_once(128 + received[0])
"""


def started(folder, address, until, **variables):
    """A search on Ray in another process, once it has printed a line; and the name of its Ray session."""
    script = folder / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_gcs_rpc_server_reconnect_timeout_s": "5"} | variables
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


@pytest.fixture
def temporary():
    """A folder for temporary files of other processes, with a short path: Ray has sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("until", ["joining", "proxy 1"])
def test_a_signal_at_a_random_moment_leaves_nothing(tmp_path, undisturbed, temporary, number, seed, until):
    """Also while Ray starts; on a busy host, too, a search has ended within ten seconds."""
    process, _ = started(tmp_path, "", until, TMPDIR=str(temporary))
    with process:
        time.sleep(random.Random(seed).uniform(0, 2))  # later the search may have ended
        begin = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=30) == (-number if number == signal.SIGKILL else 128 + number)
        assert time.monotonic() - begin < 10
    deadline = time.monotonic() + 60
    while left := [*temporary.glob("autoprune-*"), *alive(str(temporary))]:
        assert time.monotonic() < deadline, f"left over: {left}"
        time.sleep(0.5)
    assert scores(run_search(search(tmp_path), InlineExecutor(fakes.plain))) == undisturbed
    assert "RUNNING" not in states(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_workers_alone_are_killed_at_random_moments(tmp_path, undisturbed, cluster, seed):
    from autoprune.executors.ray import RayExecutor

    rng, log = random.Random(seed), tmp_path / "log"
    killed = set()

    def kill(progress):
        worker = int(rng.choice(log.read_text().splitlines()).split()[0])
        if rng.random() < 0.3 and len(killed) < 4 and worker not in killed:
            killed.add(worker)
            os.kill(worker, signal.SIGKILL)

    with RayExecutor(functools.partial(fakes.logging_to, log), address=cluster.address) as executor:
        assert scores(run_search(search(tmp_path), executor, fakes.Told(kill))) == undisturbed
    assert killed
    assert "RUNNING" not in states(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("done", [random.Random(3).randrange(1, 9), 6])
def test_the_head_is_killed(tmp_path, undisturbed, cluster, done):
    process, _ = started(tmp_path, cluster.address, f"proxy {done}")
    with process:
        cluster.head_node.kill_gcs_server(check_alive=False)
        assert process.wait(timeout=180) != 0
    assert scores(run_search(search(tmp_path), InlineExecutor(fakes.plain))) == undisturbed
    assert "RUNNING" not in states(tmp_path)
