"""The timing protocol on a simulated machine whose clock only moves when something runs."""

from dataclasses import replace

import numpy as np
import pytest

from autoprune.device.measure import Block
from autoprune.device.timing import Protocol, busy_notes, named_feeds, open_session, time_runs, timings_of
from autoprune.errors import LatencyError
from tests.machines import Machine

PROTOCOL = Protocol(repeats=20, block=4)


def timed(machine, latencies_ms, reference_ms=1.0, protocol=PROTOCOL):
    openers = [lambda ms=ms: machine.run(ms) for ms in latencies_ms]
    return time_runs(openers, machine.run(reference_ms), protocol=protocol, clock=machine.clock)


def test_a_quiet_machine_gives_exact_latencies_in_order():
    result = timed(Machine(), [0.2, 3.0, 0.7, 1.1, 0.4])
    np.testing.assert_allclose(result.latencies_ms, [0.2, 3.0, 0.7, 1.1, 0.4], rtol=1e-6)
    assert [round(s.median_ms, 6) for s in result.samples] == [0.2, 3.0, 0.7, 1.1, 0.4]
    assert result.reference_ms == pytest.approx(1.0)
    assert result.drift < 1e-6
    assert result.noise < 1e-6
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


def test_the_noise_is_the_standard_deviation_of_the_ratios():
    rng = np.random.default_rng(0)
    samples = 2.0 * (1 + 0.02 * rng.standard_normal((400, 20)))
    blocks = [Block(rows, np.full(80, 1.0)) for rows in np.split(samples, 25)]
    timings = timings_of(blocks)
    assert timings.noise == pytest.approx(np.std(timings.ratios) / np.mean(timings.ratios), rel=0.25)


def test_blocks_are_put_together():
    blocks = [
        Block(np.full((2, 4), 2.0), np.full(8, 1.0), repeated=1),
        Block(np.full((1, 4), 9.0), np.array([3.0] * 4 + [3.3] * 4), repeated=2),
    ]
    timings = timings_of(blocks)
    assert timings.ratios == (2.0, 2.0, 3.0)
    assert timings.repeated_blocks == 3
    assert timings.drift == pytest.approx(abs(3 / 3.3 - 1))
    assert timings.reference_ms == 1.0
    assert [sample.runs for sample in timings.samples] == [4, 4, 4]


def test_other_work_on_the_core_is_told():
    timings = timings_of([Block(np.full((1, 4), 2.0), np.full(8, 1.0), 0, waited) for waited in (0.2, 0.4)])
    assert timings.waited == pytest.approx(0.3)
    assert busy_notes([timings]) == [
        "other work had the core for 30% of the time; latencies are processor time of the timed thread"
    ]
    assert busy_notes([replace(timings, waited=0.02)]) == busy_notes([]) == []


def test_a_broken_model_is_a_clear_error(target):
    with pytest.raises(LatencyError, match="cannot load the model"):
        open_session(b"not onnx", target)


def test_an_absent_file_and_an_absent_provider_are_clear_errors(target, tmp_path, dense_of):
    with pytest.raises(LatencyError, match=r"cannot load the model.*nothing\.onnx"):
        open_session(tmp_path / "nothing.onnx", target)
    elsewhere = replace(target, provider="QNNExecutionProvider")
    with pytest.raises(LatencyError, match="no QNNExecutionProvider"):
        open_session(dense_of("flat").SerializeToString(), elsewhere)


def test_feeds_are_matched_by_position(target, dense_of, feeds, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(dense_of("flat").SerializeToString())
    session = open_session(path, target)
    assert list(named_feeds(session, feeds)) == [session.get_inputs()[0].name]
    with pytest.raises(ValueError, match="zip"):
        named_feeds(session, [*feeds, *feeds])
