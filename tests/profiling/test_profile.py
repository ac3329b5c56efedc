"""Whole profiles: on a simulated machine whose truth is known, and a short one of this host."""

import re
from dataclasses import replace

import numpy as np
import pytest

from autoprune.device.address import Address
from autoprune.device.noise import NoiseError
from autoprune.device.timing import Protocol
from autoprune.errors import LatencyError
from autoprune.latencies import Geometry
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.table import FIT, HELD_OUT, SCAN, LatencyTable
from autoprune.profiling import profile_work
from autoprune.profiling.duration import LOAD_S, MAX_SECONDS, ProfileSize
from autoprune.profiling.profile import profile
from autoprune.profiling.profile_work import as_prior, scanned_geometries
from autoprune.records import SearchSpace
from tests.machines import QUICK, AdditiveMachine, recording_timer, simulated_timer, stairs


class Simulated:
    """A profile of a net on a simulated machine, and what was told and asked while it was made."""

    def __init__(self, structure, space, target, *, step=4, noise=0.003, model_s=LOAD_S, **options):
        self.told, self.machine = [], AdditiveMachine(structure, stairs(step), noise=noise)
        self.machine.model_s = model_s
        timer = simulated_timer(self.machine, target, on_progress=lambda *stage: self.told.append(stage), seed=3)
        self.table = profile(structure, space, target, seed=3, timer=timer, **options)

    @property
    def repeats(self):
        """How often models were run, in the order in which that changed."""
        return [*dict.fromkeys(self.machine.repeats)][1:]  # the first look takes fewer

    def error_of(self, rows):
        predicted = self.table.predictor(self.machine.structure).predict(rows)
        return np.abs(predicted / self.machine.ms(rows) - 1)


@pytest.fixture
def simulated(structure_of, space_of, target):
    def build(name="residual", **options):
        return Simulated(structure_of(name), space_of(name), target, **options)

    return build


def rows_of(space, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(levels, size=count) for levels in space.levels.values()], axis=1)


def test_a_profile_finds_the_truth_of_a_simulated_machine(net, simulated, space_of):
    simulation = simulated(net)
    assert simulation.error_of(rows_of(space_of(net), 500)).mean() < 0.005
    assert simulation.table.held_out.mape_percent < 1
    assert simulation.table.space.levels == space_of(net).levels


def test_scans_rounds_and_held_out_policies_are_timed(simulated):
    simulation = simulated()
    counts, stages = simulation.table.counts, {stage for stage, *_ in simulation.told}
    assert counts[HELD_OUT] == simulation.table.held_out.policies == 40
    assert counts[FIT] >= 40
    assert counts[SCAN] > 20
    assert sum(counts.values()) == len(simulation.table.samples)
    assert len(simulation.table.again_ms) == 16
    assert {"scanning widths", "timing policies", "timing held-out policies", "measuring again"} <= stages
    ends = [(stage, done) for stage, done, total in simulation.told if done == total]
    assert ("scanning widths", counts[SCAN]) in ends
    assert ("measuring again", 16) in ends


def test_a_profile_of_a_large_model_is_expected_to_take_longer(structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    size = ProfileSize.of(structure, space)
    assert size.least < size.models(1e-4)
    assert size.seconds(1e-4) <= MAX_SECONDS
    slow, slower = (size.seconds(run_s) for run_s in (0.1, 0.2))
    least = 20 * 2 * 0.1  # samples of one policy and of the dense model beside it
    assert slow > (40 + 40 + 16) * least
    assert slower == pytest.approx(2 * slow, rel=0.01)


def test_held_out_policies_are_measured_again_in_their_order(simulated):
    """`again_ms` must belong to the same policies: noise apart, they are the first measurements."""
    table = simulated(noise=0.003).table
    first = [sample.measured_ms for sample in table.samples if sample.role == HELD_OUT][:16]
    np.testing.assert_allclose(table.again_ms, first, rtol=0.02)
    assert 0 < table.held_out.noise_percent < 1


def test_measurements_belong_to_their_policies(simulated):
    """They are made in random order and put back."""
    simulation = simulated(noise=0.0)
    rows = np.array([list(sample.widths.values()) for sample in simulation.table.samples])
    np.testing.assert_allclose(
        [s.measured_ms for s in simulation.table.samples], simulation.machine.ms(rows), rtol=1e-9
    )


def test_only_useful_widths_reach_narrow_and_its_space_is_profiled(simulated, space_of):
    given = []

    def narrow(useful):
        given.append(useful)
        return SearchSpace(id="narrow", levels=useful)

    simulation = simulated(narrow=narrow, noise=0.001)
    (useful,) = given
    levels = space_of("residual").levels
    assert list(useful) == list(levels)
    for name, widths in levels.items():
        stairs_of = {*range(4, widths[-1] + 1, 4)}
        assert stairs_of <= {*useful[name]} <= {*widths}
        assert len(useful[name]) <= len(stairs_of) + 1  # one that the noise of a scan let through
    table = simulation.table
    assert table.space == SearchSpace(id="narrow", levels=useful)
    for sample in table.samples:
        if sample.role in (FIT, HELD_OUT):
            assert all(width in useful[name] for name, width in sample.widths.items())
    assert any(width not in useful[n] for s in table.samples for n, width in s.widths.items() if s.role == SCAN)
    assert dict(table.known) == dict(levels)
    varying = PricedOperators.of(simulation.machine.structure).varying
    assert set(possible_geometries(varying, table.space, tuple(useful))) <= set(table.entries)
    assert simulation.error_of(rows_of(table.space, 200)).mean() < 0.01


def test_a_unit_with_one_width_reaches_narrow_with_it(structure_of, space_of, target):
    first, *_ = names = list(space_of("residual").levels)
    space = SearchSpace(id="s", levels={**space_of("residual").levels, first: (8,)})
    given = []

    def narrow(useful):
        given.append(useful)
        return SearchSpace(id="narrow", levels=useful)

    Simulated(structure_of("residual"), space, target, narrow=narrow)
    assert list(given[0]) == names
    assert given[0][first] == (8,)


def test_rounds_end_when_their_error_no_longer_falls(simulated, monkeypatch):
    monkeypatch.setattr(profile_work, "MOST_ROUNDS", 50)
    rounds = simulated(noise=0.01).table.counts[FIT] // 40
    assert 2 <= rounds < 15


def test_rounds_end_when_the_time_is_over(simulated):
    """One is always made; its rows, and the ladder."""
    assert 40 < simulated(max_seconds=0.0).table.counts[FIT] <= 48


def test_a_slow_host_times_the_same_policies(simulated):
    fast, slow = (simulated(model_s=seconds, noise=0.0).table for seconds in (LOAD_S, 0.12))
    assert slow.seconds > 10 * fast.seconds
    assert slow.samples == fast.samples
    assert slow.entries == fast.entries


def test_in_noise_policies_are_timed_longer_and_it_is_said_why(simulated, verdict_on_noise):
    notes: list[str] = []
    simulation = simulated(noise=0.08, protocol=QUICK, on_note=notes.append)
    (line,) = notes
    assert re.match(r"latencies vary by 8% from one measurement .* so policies are timed 3 times as long", line)
    assert simulation.repeats == [QUICK.repeats, 3 * QUICK.repeats]


def test_in_too_much_noise_there_is_no_table_unless_it_is_allowed(simulated, verdict_on_noise):
    with pytest.raises(NoiseError, match=r"vary by at most 15% .* here they vary by 30%"):
        simulated(noise=0.3)
    table = simulated(noise=0.3, allow_noise=True).table
    with pytest.raises(NoiseError, match="--allow-noise"):
        table.require_quiet()
    assert table.require_quiet(allow_noise=True) is table


def test_without_time_fewer_widths_are_scanned_and_that_is_noted(simulated, space_of):
    given = []

    def narrow(useful):
        given.append(useful)
        return space_of("residual", 4)

    table = simulated(max_seconds=0.0, narrow=narrow, step=1, noise=0.0).table
    for name, levels in space_of("residual").levels.items():
        assert 2 <= len(given[0][name]) <= 4
        assert given[0][name][-1] == levels[-1]
        assert set(given[0][name]) <= set(levels)
    assert any("widths are tried, the fewest that tell every unit" in note for note in table.notes)
    assert simulated(max_seconds=60.0).table.notes == ()


def test_the_space_is_profiled_whole_however_little_was_scanned(simulated, space_of):
    simulation = simulated(max_seconds=0.0)
    assert simulation.table.space == space_of("residual")
    assert dict(simulation.table.known) == dict(space_of("residual").levels)
    assert (simulation.error_of(rows_of(space_of("residual"), 300)) < 0.2).all()


def test_the_address_of_a_target_is_not_in_its_table(structure_of, space_of, target):
    remote = replace(target, address=Address(login="me@board"))
    assert Simulated(structure_of("flat"), space_of("flat"), remote).table.target == target.fingerprint()


def test_scanned_geometries_are_those_of_the_rows(structure_of, removing_space_of):
    structure, space = structure_of("residual"), removing_space_of("residual")
    varying = PricedOperators.of(structure).varying
    rows = rows_of(space, 7)
    geometries = scanned_geometries(varying, rows)
    wanted = {op.geometry(op.sizes(row[None])[0]) for op in varying for row in rows if op.present(row[None])[0]}
    assert set(geometries) == wanted
    assert list(geometries) == list(scanned_geometries(varying, rows))


def test_a_prior_names_its_geometries():
    geometries = (Geometry(op="a", c_in=1, c_out=2), Geometry(op="b", c_in=1, c_out=2))
    assert as_prior(geometries, np.array([0.5, 1.5])) == dict(zip(geometries, (0.5, 1.5), strict=True))
    with pytest.raises(ValueError, match="zip"):
        as_prior(geometries, np.array([0.5]))


# --- here


@pytest.fixture(scope="module")
def timer(structure_of, target):
    """The timer of `real`, with everything that it timed."""
    return recording_timer(structure_of("residual"), target, seed=3)


@pytest.fixture(scope="module")
def real(structure_of, space_of, target, timer):
    """A short profile of this host."""
    options = {"seed": 3, "max_seconds": 0.0, "protocol": QUICK, "timer": timer}
    return profile(structure_of("residual"), space_of("residual", 4), target, **options)


def test_a_real_table_answers_for_the_whole_space(real, structure_of):
    structure = structure_of("residual")
    varying = PricedOperators.of(structure).varying
    assert set(possible_geometries(varying, real.space, tuple(real.space.levels))) <= set(real.entries)
    rows = rows_of(real.space, 500)
    prediction = real.predictor(structure).predict_with_sd(rows)
    assert (prediction.latency_ms > real.remainder_ms).all()
    assert np.isfinite(prediction.latency_ms).all()
    assert np.isfinite(prediction.sd_ms).all()


def test_a_real_table_says_where_it_comes_from(real, timer, structure_of, target):
    assert real.target == target.fingerprint()
    assert real.structure == structure_of("residual").digest()
    assert real.seed == 3
    of_evidence = timer.timings[1:]  # the first look only tells how long a run takes
    assert real.dense_ms == np.median([timings.reference_ms for timings in of_evidence])
    assert real.noise == np.median([timings.noise for timings in of_evidence])
    measured_s = sum(t.reference.runs * t.reference.median_ms for t in timer.timings) / 1e3
    assert measured_s / 2 < real.seconds < 120
    assert real.fixed == ()
    assert set(real.useful) == set(real.known) == set(real.space.levels)


def test_a_real_table_keeps_its_held_out_policies(real, structure_of):
    held = [sample for sample in real.samples if sample.role == HELD_OUT]
    assert len(held) == real.held_out.policies == 40
    rows = np.array([list(sample.widths.values()) for sample in held])
    predicted = real.predictor(structure_of("residual")).predict(rows)
    np.testing.assert_allclose(predicted, [sample.predicted_ms for sample in held])
    errors = [abs(s.predicted_ms / s.measured_ms - 1) * 100 for s in held]
    assert np.mean(errors) == pytest.approx(real.held_out.mape_percent)


def test_a_real_table_survives_its_file(real, tmp_path):
    real.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == real


def test_a_model_that_cannot_be_loaded_is_a_clear_error(structure_of, space_of, target):

    with pytest.raises(LatencyError, match="no QNNExecutionProvider"):
        profile(
            structure_of("flat"),
            space_of("flat"),
            replace(target, provider="QNNExecutionProvider"),
            protocol=Protocol(repeats=2),
        )
