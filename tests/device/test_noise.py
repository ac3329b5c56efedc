"""Noise has a verdict: longer, or not at all; and what makes it is told."""

import dataclasses
import os

import pytest

from autoprune.device import noise
from autoprune.device.noise import HostState, NoiseError, require_quiet, times_longer, what_is_busy


def test_noise_decides_how_long_is_measured(verdict_on_noise):
    assert [times_longer(value) for value in (0.0, noise.QUIET, 0.06, 0.08, 0.2)] == [1, 1, 2, 3, 4]


def test_too_much_noise_is_refused_in_one_sentence_unless_it_is_allowed(verdict_on_noise):
    require_quiet(0.15, allow=False)
    require_quiet(0.44, allow=True)
    with pytest.raises(NoiseError, match=r"at most 15% .* here they vary by 44% .*--allow-noise"):
        require_quiet(0.44, allow=False)


def test_the_busiest_processes_are_named(monkeypatch):
    states = [
        {1: ("calm", 7.0), 2: ("render", 1.0), 3: ("train", 5.0), os.getpid(): ("self", 0.0)},
        {1: ("calm", 7.0), 2: ("render", 1.15), 3: ("train", 5.3), 4: ("new", 9.0), os.getpid(): ("self", 0.3)},
    ]
    monkeypatch.setattr(noise, "_cpu_seconds", lambda: states.pop(0))
    assert what_is_busy().endswith("train (process 3) takes 100% of a core; render (process 2) takes 50% of a core")


@pytest.mark.skipif(not noise._PROC.is_dir(), reason="the system has no /proc")
def test_processor_seconds_of_this_process_are_found():
    assert noise._cpu_seconds()[os.getpid()][1] > 0


def test_limits_heat_and_clocks_are_read_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "_CGROUP", tmp_path)
    monkeypatch.setattr(noise, "_CPUS", tmp_path)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 7\nnr_periods 100\nnr_throttled 10\n")
    for cpu, kilohertz in (("cpu0", 3_000_000), ("cpu1", 1_200_000)):
        (tmp_path / cpu / "cpufreq").mkdir(parents=True)
        (tmp_path / cpu / "cpufreq" / "scaling_cur_freq").write_text(str(kilohertz))
        (tmp_path / cpu / "thermal_throttle").mkdir()
        (tmp_path / cpu / "thermal_throttle" / "core_throttle_count").write_text("1\n")
    before = HostState.now()
    assert before == HostState(throttled=10, periods=100, cores=1.5, heat=2, hertz=(3_000_000_000, 1_200_000_000))
    after = dataclasses.replace(before, throttled=40, periods=200, heat=5)
    limit, heat, clocks = after.notes_since(before)
    assert limit.startswith("this process may use 1.5 cores and had to wait in 30% of the periods")
    assert heat == "cores slowed down 3 times because they were hot"
    assert clocks == "clocks of the cores were between 1.2 and 3.0 GHz"
    assert HostState(hertz=(2_000_000_000,)).notes_since(HostState()) == []


def test_a_host_that_tells_nothing_has_no_state(tmp_path, monkeypatch):
    for name in ("_CGROUP", "_CPUS", "_PROC"):
        monkeypatch.setattr(noise, name, tmp_path / "absent")
    assert HostState.now() == HostState()
    monkeypatch.delattr("os.getloadavg", raising=False)
    assert what_is_busy() == "the system does not say what is busy"
