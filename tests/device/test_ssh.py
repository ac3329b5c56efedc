"""Measuring on another host, with an `ssh` that runs everything here in a home of its own."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from autoprune.device.address import Address
from autoprune.device.connect import make_target
from autoprune.device.runner import kernel_times, time_models
from autoprune.device.ssh import ask_fingerprint, measure_remotely
from autoprune.errors import KitError, LatencyError
from tests.device.ssh_host import CPU, PYTHON, Host
from tests.machines import QUICK

BOARD = Address(login="me@board")
HERE = replace(BOARD, python=sys.executable)


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


@pytest.fixture
def remote(host, target):
    return replace(target, address=HERE)


def test_a_remote_target_is_described_by_its_host(host, target):
    connected = make_target(f"ssh://me@board:2222{PYTHON}", batch=3)
    assert connected == replace(target, batch=3, address=replace(HERE, port=2222))
    assert host.arguments[-5:-1] == ["-p", "2222", "--", "me@board"]
    assert "BatchMode=yes" in host.arguments


def test_the_client_takes_an_ipv6_address_without_brackets(host, target):
    connected = make_target(f"ssh://me@[::1]:2222{PYTHON}")
    assert connected == replace(target, address=replace(HERE, login="me@::1", port=2222))
    assert host.arguments[-5:-1] == ["-p", "2222", "--", "me@::1"]


def test_models_are_timed_remotely_and_nothing_is_left_behind(host, remote, models, feeds):
    dense, *small = models
    timings = time_models(iter(small), remote, feeds, reference=dense, protocol=QUICK)
    assert len(timings.ratios) == 3
    assert np.isfinite(timings.ratios).all()
    assert timings.samples[0].runs == QUICK.repeats
    assert host.kits == []
    assert (host.home / ".cache/autoprune").is_dir()


def test_kernels_are_profiled_remotely(host, remote, models, feeds):
    kernels = list(kernel_times(iter(models[:2]), remote, feeds))
    assert len(kernels) == 2
    assert all(times.names and times.ms.shape[1] == len(times.names) for times in kernels)
    assert host.kits == []


def test_the_address_may_have_a_port(host, remote, models, feeds):
    target = replace(remote, address=replace(HERE, port=2201))
    measure_remotely(models[1:2], target, feeds, reference=models[0], protocol=QUICK)
    calls = "\n".join(host.arguments).split("BatchMode=yes")[1:]
    assert len(calls) == 4
    assert all("\n-p\n2201\n--\nme@board\n" in call for call in calls)


def test_a_measurement_that_broke_off_goes_on(host, remote, models, feeds):
    dense, *small = models
    host.install(hook='case "$3" in cat*results.json) echo "Connection to board closed" >&2; exit 255;; esac')
    with pytest.raises(LatencyError, match="me@board: Connection to board closed"):
        time_models(small, remote, feeds, reference=dense, protocol=QUICK)
    (kit,) = host.kits
    lines = (kit / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2
    marked = lines[1].replace('"repeated": 0', '"repeated": 0, "mark": 7')
    (kit / "results.jsonl").write_text(f"{lines[0]}\n{marked}\n")
    (kit / "results.json").unlink()
    host.install(hook=f'case "$3" in rm*) cp {kit}/results.json {host.home}/kept.json;; esac')
    timings = time_models(small, remote, feeds, reference=dense, protocol=QUICK)
    assert len(timings.ratios) == 3
    assert '"mark": 7' in (host.home / "kept.json").read_text()
    assert host.kits == []


def test_a_measurement_that_broke_off_does_not_go_on_at_another_batch(host, remote, models, feeds):
    dense, *small = models
    host.install(hook='case "$3" in cat*results.json) exit 255;; esac')
    with pytest.raises(LatencyError):
        time_models(small, remote, feeds, reference=dense, protocol=QUICK)
    left = host.kits
    host.install()
    larger = [np.repeat(value, 3, axis=0) for value in feeds]
    time_models(small, replace(remote, batch=3), larger, reference=dense, protocol=QUICK)
    assert host.kits == left
    assert len(left) == 1


def test_a_python_in_the_home_of_the_host_measures(host, target, models, feeds):
    own = host.home / "my venv/bin/python"
    own.parent.mkdir(parents=True)
    own.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    own.chmod(0o755)
    remote = make_target("ssh://me@board?python=~/my%20venv/bin/python")
    assert remote.fingerprint() == target.fingerprint()
    assert len(time_models(models[1:2], remote, feeds, reference=models[0], protocol=QUICK).ratios) == 1


@pytest.mark.parametrize(
    ("address", "name", "command"),
    [
        (BOARD, "me@board", "ssh me@board"),
        (replace(BOARD, port=2222), "me@board:2222", "ssh -p 2222 me@board"),
        (Address(login="me@::1", port=2222), "me@[::1]:2222", "ssh -p 2222 me@::1"),
    ],
)
def test_an_unreachable_host_gives_the_reason_and_what_to_check(address, name, command, host):
    host.install(hook='echo "ssh: connect to host board port 22: Connection refused" >&2; exit 255')
    with pytest.raises(LatencyError, match="Connection refused") as caught:
        ask_fingerprint(address, CPU, 1)
    assert str(caught.value).startswith(f"{name}: ssh: connect")
    assert f"Check `{command}`" in str(caught.value)
    assert f"ssh://{name}?python=PATH" in str(caught.value)


def test_a_silent_failure_gives_the_exit_code(host):
    host.install(hook="exit 7")
    with pytest.raises(LatencyError, match="me@board: exit code 7"):
        ask_fingerprint(BOARD, CPU, 1)


def test_a_python_without_the_packages_is_named(host, tmp_path):
    bare = tmp_path / "bare python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(LatencyError, match="No module named 'numpy'") as caught:
        ask_fingerprint(replace(BOARD, python=str(bare)), CPU, 1)
    assert "numpy and onnxruntime" in str(caught.value)
    assert "?python=PATH" in str(caught.value)


def test_a_provider_that_the_host_lacks_is_named(host, remote, models, feeds):
    target = replace(remote, provider="QNNExecutionProvider")
    with pytest.raises(LatencyError, match="no QNNExecutionProvider; it has"):
        time_models(models[1:], target, feeds, reference=models[0], protocol=QUICK)


def test_the_command_of_the_host_is_quoted(host, tmp_path):
    with pytest.raises(LatencyError):
        ask_fingerprint(replace(BOARD, python=f"python3; touch {tmp_path}/evil"), CPU, 1)
    assert not (tmp_path / "evil").exists()


def test_without_a_client_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LatencyError, match="needs the OpenSSH client"):
        ask_fingerprint(BOARD, CPU, 1)


@pytest.mark.parametrize("answer", ["Welcome!", "", "[1, 2", "\\377"])
def test_an_answer_that_is_no_json_is_refused(answer, host, remote, models, feeds):
    host.install(text=f"#!/bin/sh\ncat > /dev/null\nprintf '{answer}'\n")
    with pytest.raises(LatencyError, match="did not answer with JSON"):
        ask_fingerprint(BOARD, CPU, 1)
    with pytest.raises(LatencyError, match="did not answer with JSON"):
        measure_remotely(models[1:], remote, feeds, reference=models[0], protocol=QUICK)


@pytest.mark.parametrize("answer", ["[]", "3", "{}", '{"cpu": "x"}', '{"schema": 1, "kit": "other"}'])
def test_an_answer_that_is_no_measurement_is_refused(answer, host, remote, models, feeds):
    host.install(text=f"#!/bin/sh\ncat > /dev/null\nprintf '{answer}'\n")
    with pytest.raises(KitError, match="fingerprint is missing"):
        ask_fingerprint(BOARD, CPU, 1)
    with pytest.raises(KitError, match=r"no result of a kit|belongs to kit"):
        measure_remotely(models[1:], remote, feeds, reference=models[0], protocol=QUICK)


def test_another_device_than_before_is_refused(host, remote, models, feeds):
    before = replace(remote, cpu="Cortex-A53")
    with pytest.raises(LatencyError, match=r"another device than before.*'Cortex-A53' before") as caught:
        time_models(models[1:], before, feeds, reference=models[0], protocol=QUICK)
    assert "runtime_version" not in str(caught.value)
