"""Timing in blocks on a simulated clock, the cores that are timed on, and what a host says of itself."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from autoprune.device import measure
from autoprune.device.measure import Protocol, clock_of, measure_block, pinned, quiet, session_options
from tests.machines import Machine


def block_of(machine, latencies_ms, protocol, reference_ms=1.0):
    runs = [machine.run(ms) for ms in latencies_ms]
    rng = np.random.default_rng(0)
    return measure_block(runs, machine.run(reference_ms), protocol, rng, machine.clock)


def test_a_block_holds_all_samples_of_all_models():
    protocol = Protocol(repeats=7, reference_samples=3)
    block = block_of(Machine(), [0.5, 2.0], protocol)
    assert block.samples_ms.shape == (2, 7)
    assert block.reference_ms.shape == (21,)
    np.testing.assert_allclose(block.ratios, [0.5, 2.0])


def test_quiet_latency_is_the_20th_percentile():
    assert quiet(np.arange(101.0)) == 20
    np.testing.assert_allclose(quiet(np.array([[1.0] * 10, [1.0] * 3 + [9.0] * 7])), [1.0, 1.0])


def test_models_are_interleaved_in_random_order():
    order = []

    class Noted(Machine):
        def run(self, ms):
            once = super().run(ms)
            return lambda: (order.append(ms), once())

    protocol = Protocol(repeats=4, reference_samples=1, sample_ms=0.1, warmup_runs=0, retries=0)
    block_of(Noted(), [1.0, 2.0, 3.0], protocol, reference_ms=4.0)
    rounds = np.array(order[4 * 2 * 3 :][::2]).reshape(
        4, 4
    )  # every sample is a run that is not counted, and one that is
    assert all(sorted(turn) == [1.0, 2.0, 3.0, 4.0] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1


def test_the_first_run_of_a_sample_is_not_counted():
    machine, started = Machine(), []

    def cold():
        started.append(machine.now)
        slow = len(started) < 2 or machine.now != cold.ended
        machine.now += 9e-3 if slow else 1e-3
        cold.ended = machine.now

    cold.ended = -1.0
    protocol = Protocol(repeats=3, reference_samples=1, retries=0)
    block = measure_block([cold], machine.run(1.0), protocol, np.random.default_rng(0), machine.clock)
    np.testing.assert_allclose(block.samples_ms, 1.0)


def test_a_block_whose_reference_moves_is_measured_again():
    machine = Machine(lambda now: 1.0 if now < 0.1 else 1.5)
    block = block_of(machine, [1.0, 2.0], Protocol(repeats=20, warmup_runs=1))
    assert block.repeated == 1
    assert block.drift < 1e-6
    np.testing.assert_allclose(block.ratios, [1.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_repetition_is_bounded(retries):
    protocol = Protocol(repeats=20, retries=retries)
    block = block_of(Machine(lambda now: 1 + 3 * now), [1.0, 2.0], protocol)
    assert block.repeated == retries
    assert block.drift > protocol.max_drift


def test_the_stillest_attempt_is_kept():
    def drift(retries, slowness):
        machine = Machine(slowness)
        block = block_of(machine, [1.0, 2.0], Protocol(repeats=20, retries=retries))
        return block.drift, machine.now

    steep, first = drift(0, lambda now: 1 + 3 * now)
    gentle = lambda now: 1 + 3 * min(now, first) + 1.5 * max(0, now - first)  # noqa: E731
    _, second = drift(1, gentle)
    steep_again = lambda now: gentle(now) + 9 * max(0, now - second)  # noqa: E731
    assert 0.03 < drift(1, gentle)[0] < steep
    assert drift(2, steep_again)[0] == pytest.approx(drift(1, gentle)[0], rel=1e-9)


@pytest.mark.parametrize(("slower", "repeated"), [(1.02, 0), (1.045, 1)])
def test_a_move_within_three_percent_is_accepted(slower, repeated):
    machine = Machine(lambda now: 1.0 if now < 0.1 else slower)
    block = block_of(machine, [1.0, 2.0], Protocol(repeats=20, warmup_runs=1))
    assert block.repeated == repeated
    assert block.drift <= 0.03
    assert (block.drift > 0.001) == (repeated == 0)


def test_one_thread_is_timed_by_its_processor_time_and_waiting_is_told():
    def interrupted():
        time.sleep(2e-3)  # as while another process has the core

    protocol = Protocol(repeats=2, reference_samples=1, sample_ms=0, warmup_runs=0, retries=0)
    rng = np.random.default_rng(0)
    block = measure_block([interrupted], interrupted, protocol, rng, clock_of("CPUExecutionProvider", 1))
    assert block.samples_ms.max() < 1
    assert block.waited > 0.5
    block = measure_block([interrupted], interrupted, protocol, rng)
    assert block.samples_ms.min() > 2
    assert block.waited < 0.1


def test_only_what_runs_on_the_calling_thread_alone_is_timed_by_processor_time():
    alone = [("CPUExecutionProvider", 1), ("cpu", 1)]
    others = [("CPUExecutionProvider", 2), ("cpu", 2), ("cuda", 1), ("OpenVINOExecutionProvider", 1)]
    assert {clock_of(*each) for each in alone} == {time.thread_time}
    assert {clock_of(*each) for each in others} == {time.perf_counter}


class Cores:
    """A host whose cores are unequally busy; stands for the affinity of this thread."""

    def __init__(self, busyness):
        self.busyness = busyness
        self.now = self.before = set(busyness)

    def install(self, monkeypatch):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(self.now), raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", self.move, raising=False)
        monkeypatch.setattr(measure, "_busyness", self.try_core)

    def move(self, pid, cores):
        self.now = set(cores)

    def try_core(self, core):
        self.now = {core}
        return self.busyness[core]


@pytest.mark.parametrize(("threads", "wanted"), [(1, {5}), (2, {5, 0}), (3, {0, 3, 5}), (8, {0, 3, 5})])
def test_pinning_takes_the_fastest_cores_and_gives_them_back(threads, wanted, monkeypatch):
    cores = Cores({0: 2.0, 3: 9.0, 5: 1.0})
    cores.install(monkeypatch)
    with pinned(threads):
        assert cores.now == wanted
    assert cores.now == cores.before


@pytest.mark.parametrize(("name", "value"), [("repeats", 1), ("block", 0), ("retries", -1), ("reference_samples", 0)])
def test_a_protocol_that_cannot_tell_noise_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} .* or more; got {value}"):
        Protocol(**{name: value})


def places_of_workers(threads):
    try:
        return session_options(threads).get_session_config_entry("session.intra_op_thread_affinities")
    except RuntimeError:
        return None


@pytest.mark.parametrize(
    ("threads", "own", "workers"), [(1, {5}, None), (2, {5}, "1"), (3, {5}, "1;4"), (8, {0, 3, 5}, None)]
)
def test_every_thread_of_a_session_can_have_a_core_of_its_own(threads, own, workers, monkeypatch):
    cores = Cores({0: 2.0, 3: 9.0, 5: 1.0})
    cores.install(monkeypatch)
    with pinned(threads, one_each=True):
        assert cores.now == own
        assert places_of_workers(threads) == workers
    assert cores.now == cores.before
    assert places_of_workers(threads) is None


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_session_with_another_number_of_workers_than_there_are_cores_has_no_places(threads, monkeypatch):
    Cores({0: 2.0, 3: 9.0, 5: 1.0, 6: 4.0}).install(monkeypatch)
    with pinned(3, one_each=True):
        assert places_of_workers(3) == "1;7"
        assert places_of_workers(threads) is None


def test_an_error_gives_the_cores_back(monkeypatch):
    cores = Cores({0: 2.0, 3: 9.0, 5: 1.0})
    cores.install(monkeypatch)
    with pytest.raises(KeyError, match="boom"), pinned(1):
        raise KeyError("boom")
    assert cores.now == cores.before


def test_an_error_while_looking_for_a_core_gives_them_back(monkeypatch):
    cores = Cores({0: 2.0, 3: 9.0})
    cores.install(monkeypatch)
    monkeypatch.setattr(cores, "busyness", {0: 1.0})
    monkeypatch.setattr(measure, "_busyness", cores.try_core)
    with pytest.raises(KeyError), pinned(1):
        pass
    assert cores.now == cores.before


def test_hosts_without_affinity_are_measured_as_they_are(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pinned(1):
        pass


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_this_host_is_pinned():
    before = os.sched_getaffinity(0)
    with pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_the_host_is_described(monkeypatch):
    cpu, isa = measure.host()
    assert cpu
    assert list(isa) == sorted(set(isa))


def test_a_host_without_cpuinfo_still_has_a_name(monkeypatch):
    def absent(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    cpu, isa = measure.host()
    assert cpu
    assert isa == ()


def test_an_arm_host_is_described(monkeypatch):
    text = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert measure.host() == ("0xd0c", ("asimd", "asimddp"))


@pytest.mark.parametrize("script", ["exit 1", "echo 'Tesla T4'; echo 'Tesla T5'"])
def test_the_accelerator_is_the_first_one_or_none(script, tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert measure.accelerator() == ("" if "exit" in script else "Tesla T4")


def test_a_host_without_the_tool_has_no_accelerator(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure.accelerator() == ""
