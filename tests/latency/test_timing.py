"""The timing protocol on a simulated machine whose clock only moves when something runs."""

from dataclasses import replace

import numpy as np
import pytest

from autoprune.errors import LatencyError
from autoprune.latency.onnx_model import Resizer
from autoprune.latency.timing import Protocol, open_session, time_models, time_runs

PROTOCOL = Protocol(repeats=20, block=4)


class Machine:
    """Seconds pass only in runs; `slowness(now)` multiplies them."""

    def __init__(self, slowness=lambda now: 1.0):
        self.now = 0.0
        self.slowness = slowness
        self.runs = 0

    def run(self, ms):
        def once():
            self.runs += 1
            self.now += ms * 1e-3 * self.slowness(self.now)

        return once

    def clock(self):
        return self.now


def timed(machine, latencies_ms, reference_ms=1.0, protocol=PROTOCOL):
    openers = [lambda ms=ms: machine.run(ms) for ms in latencies_ms]
    return time_runs(openers, machine.run(reference_ms), protocol=protocol, clock=machine.clock)


def test_a_quiet_machine_gives_exact_latencies_in_order():
    result = timed(Machine(), [0.2, 3.0, 0.7, 1.1, 0.4])
    np.testing.assert_allclose(result.latencies_ms, [0.2, 3.0, 0.7, 1.1, 0.4], rtol=1e-6)
    assert [round(s.median_ms, 6) for s in result.samples] == [0.2, 3.0, 0.7, 1.1, 0.4]
    assert result.reference_ms == pytest.approx(1.0)
    assert result.drift < 1e-6
    assert result.repeated_blocks == 0


def test_slow_drift_cancels_in_the_ratios():
    machine = Machine(lambda now: 1 + 0.06 * now)
    result = timed(machine, [0.5] * 12, protocol=replace(PROTOCOL, retries=0))
    assert machine.slowness(machine.now) > 1.05
    np.testing.assert_allclose(result.ratios, 0.5, rtol=0.01)
    medians = [s.median_ms for s in result.samples]
    assert max(medians) / min(medians) > 1.03


def test_rare_disturbances_do_not_change_the_result():
    rng = np.random.default_rng(0)
    machine = Machine(lambda now: 5.0 if rng.random() < 0.4 else 1.0)
    result = timed(machine, [2.0, 4.0], reference_ms=2.0)
    np.testing.assert_allclose(result.ratios, [1.0, 2.0], rtol=1e-6)
    assert result.samples[0].p90_ms > 2 * result.samples[0].p10_ms


def test_a_block_whose_reference_moves_is_measured_again():
    machine = Machine(lambda now: 1.0 if now < 0.1 else 1.5)
    result = timed(machine, [1.0, 2.0], protocol=Protocol(repeats=20, warmup_runs=1))
    assert result.repeated_blocks == 1
    assert result.drift < 1e-6
    np.testing.assert_allclose(result.ratios, [1.0, 2.0], rtol=1e-6)


def test_repetition_is_bounded_and_the_drift_reported():
    machine = Machine(lambda now: 1 + 3 * now)
    result = timed(machine, [1.0, 2.0])
    assert result.repeated_blocks == PROTOCOL.retries
    assert result.drift > PROTOCOL.max_drift


def test_short_models_run_many_times_for_one_sample():
    few, many = Machine(), Machine()
    timed(few, [1.0], protocol=Protocol(repeats=3))
    timed(many, [0.01], protocol=Protocol(repeats=3))
    assert many.runs > few.runs + 3 * 90


def test_only_one_block_of_models_is_open_at_a_time():
    machine = Machine()
    opened = []
    runs_at_opening = []

    def opener(number):
        def build():
            opened.append(number)
            runs_at_opening.append(machine.runs)
            return machine.run(1.0)

        return build

    time_runs((opener(i) for i in range(10)), machine.run(1.0), protocol=PROTOCOL, clock=machine.clock)
    assert opened == list(range(10))
    assert runs_at_opening[3] == runs_at_opening[0] < runs_at_opening[4] == runs_at_opening[7] < runs_at_opening[8]


def test_no_models_is_an_error():
    with pytest.raises(LatencyError, match="at least one model"):
        timed(Machine(), [])


def test_a_broken_model_is_a_clear_error(target):
    with pytest.raises(LatencyError, match="cannot load the model"):
        open_session(b"not onnx", target)


def test_real_models_are_timed(structure_of, dense_of, space_of, target):
    dense = dense_of("residual")
    policy = space_of("residual").smallest()
    small = Resizer(dense, structure_of("residual")).resize(policy)
    feeds = [np.zeros((1, 1, 8, 8), np.float32)]
    protocol = Protocol(repeats=2, sample_ms=0.1)
    result = time_models([small, small], target, feeds, reference=dense.SerializeToString(), protocol=protocol)
    assert len(result.samples) == len(result.ratios) == 2
    assert all(0 < s.p10_ms <= s.median_ms <= s.p90_ms for s in result.samples)
    assert result.samples[0].runs == 2
