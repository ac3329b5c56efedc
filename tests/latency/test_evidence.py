"""From timed policies to a table, on a machine whose costs are known."""

from dataclasses import replace

import numpy as np
import pytest

from autoprune.errors import LatencyError
from autoprune.latency.evidence import Conditions, Evidence, build_table, occurrences, predictor_of, refit_table
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.predictor import ABSENT, MISSING
from autoprune.latency.table import CANDIDATE, FIT, HELD_OUT, SCAN, LatencyTable
from tests.machines import (
    ORT,
    AdditiveMachine,
    fitted_to,
    index_of,
    prior_of,
    rows_of,
    simulated_table,
    stairs,
    timed_once,
)


def test_evidence_grows_by_roles():
    none = Evidence.none(3)
    evidence = none.plus(np.array([[1, 2, 3]]), np.array([0.5]), SCAN)
    evidence = evidence.plus(np.array([[4, 5, 6], [7, 8, 9]]), np.array([0.6, 0.7]), HELD_OUT)
    assert evidence.rows.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert evidence.rows.dtype == np.int64
    assert evidence.ratios.tolist() == [0.5, 0.6, 0.7]
    assert evidence.roles == (SCAN, HELD_OUT, HELD_OUT)
    assert evidence.fitted().tolist() == [True, False, False]
    assert evidence.where(SCAN, CANDIDATE).tolist() == [True, False, False]
    assert len(none.ratios) == 0


def test_entries_are_counted_as_often_as_they_occur():
    assert occurrences(np.array([[0, 2, 2], [1, 1, 1]]), 4).tolist() == [[1, 0, 2, 0], [0, 3, 0, 0]]
    assert occurrences(np.empty((0, 3), dtype=np.int64), 2).shape == (0, 2)


@pytest.mark.parametrize(("noise", "step"), [(0.0, 1), (0.0, 4), (0.004, 1), (0.004, 4)])
def test_a_table_of_an_additive_machine_is_nearly_right(noise, step, net, structure_of, space_of, target):
    machine = AdditiveMachine(structure_of(net), stairs(step), noise=noise)
    table = simulated_table(machine, space_of(net), target)
    assert table.held_out.policies == 40
    assert table.held_out.mape_percent < 1.0
    assert abs(table.held_out.bias_percent) < 0.4
    assert table.held_out.spearman > 0.8  # many policies differ by less than the noise
    assert table.held_out.noise_percent == pytest.approx(100 * noise * np.sqrt(4 / np.pi), rel=0.5)
    new = rows_of(space_of(net), 300, seed=9)
    predicted = table.predictor(machine.structure).predict(new)
    np.testing.assert_allclose(predicted, machine.ms(new), rtol=0.03)
    dense = np.array([[unit.width for unit in machine.structure.units]])
    assert table.predictor(machine.structure).predict(dense)[0] == pytest.approx(machine.dense_ms, rel=0.005)


@pytest.mark.parametrize("policies", [20, 120])
@pytest.mark.parametrize("noise", [0.0, 0.004, 0.01])
def test_the_deviation_fits_the_error_on_policies_that_nobody_saw(noise, policies, net, structure_of, space_of, target):
    """In milliseconds and over all policies; the posterior alone is several times too sure of a wrong prior."""
    machine = AdditiveMachine(structure_of(net), noise=noise, seed=1)
    table = simulated_table(machine, space_of(net), target, policies=policies, tested=200)
    new = rows_of(space_of(net), 500, seed=4)
    prediction = table.predictor(machine.structure).predict_with_sd(new)
    error = prediction.latency_ms - machine.ratios(new) * machine.dense_ms
    ratio = np.sqrt(np.mean(error**2) / np.mean(prediction.sd_ms**2))
    assert ratio < 1.4
    assert ratio > 0.7 or noise == 0  # it is never taken far below the posterior, whose noise is at least 0.1 %
    if noise == 0:
        assert np.mean(np.abs(error) <= 2 * prediction.sd_ms) > 0.85


def rounded(spread_ms):
    """A table keeps three digits of its spreads; where they cancel, that is more than a hundredth of the sum."""
    return np.vectorize(lambda value: float(f"{value:.3g}"))(spread_ms)


def test_luck_on_held_out_policies_does_not_make_sure(structure_of, space_of):
    """Held-out policies that are predicted exactly take the posterior's deviation down to a quarter, not to nothing."""
    structure, space = structure_of("residual"), space_of("residual")
    machine, prior = AdditiveMachine(structure), prior_of(structure, space)
    fitted, held = rows_of(space, 60, 1), rows_of(space, 5, 3)
    evidence = Evidence.none(3).plus(fitted, machine.ratios(fitted), FIT)
    index = index_of(structure, prior)
    posterior = fitted_to(structure, prior, evidence, machine.dense_ms)
    counts = occurrences(index.numbers(held), len(prior))
    lucky = evidence.plus(held, posterior.predict(counts) / machine.dense_ms, HELD_OUT)
    table = build_table(structure, PricedOperators.of(structure), space, ORT, lucky, prior, timed_once(machine))
    sds = [sample.sd_ms for sample in table.samples if sample.role == HELD_OUT]
    quarter = replace(
        posterior,
        spread_ms=rounded(posterior.spread_ms / 4),
        remainder_spread_ms=rounded(posterior.remainder_spread_ms / 4),
    )
    np.testing.assert_allclose(sds, quarter.sd_ms(counts), rtol=1e-4)
    assert table.held_out.within_2sd == 1


def test_a_table_says_everything_that_was_told(table, structure_of, space_of, target):
    structure = structure_of("residual")
    assert table.target == target.fingerprint()
    assert table.space == space_of("residual")
    assert table.structure == structure.digest()
    assert (table.seed, table.seconds, table.repeated_blocks, table.notes) == (0, 1.5, 2, ("simulated",))
    assert table.drift_percent == pytest.approx(1.0)
    assert table.counts == {FIT: 120, HELD_OUT: 40}
    assert table.noise == 0.003
    assert len(table.again_ms) == 16
    assert table.created.endswith("+00:00")
    assert table.fixed == ()
    assert list(table.known) == [unit.name for unit in structure.units]
    for name, levels in space_of("residual").levels.items():
        assert table.known[name] == levels
        assert set(table.useful[name]) <= set(levels)
        assert table.useful[name][-1] == levels[-1]
    predicted = table.predictor(structure).predict_with_sd(
        np.array([list(sample.widths.values()) for sample in table.samples])
    )
    np.testing.assert_allclose(predicted.latency_ms, [sample.predicted_ms for sample in table.samples])
    np.testing.assert_allclose(predicted.sd_ms, [sample.sd_ms for sample in table.samples], rtol=1e-5)


def test_useful_widths_are_the_stairs_of_the_machine(structure_of, space_of, target):
    machine = AdditiveMachine(structure_of("residual"), stairs(4))
    table = simulated_table(machine, space_of("residual"), target, policies=300)
    assert table.useful == {"stem.0": (4, 8), "inner.0": (4, 8)} | {
        name: (4, 8, 12, 16) for name, levels in space_of("residual").levels.items() if levels[-1] == 16
    }


def test_held_out_policies_do_not_change_the_fit(structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    machine = AdditiveMachine(structure)
    fitted, held = rows_of(space, 60, 0), rows_of(space, 20, 1)
    prior = prior_of(structure, space)
    tables = []
    for factor in (1.0, 1.5):
        evidence = Evidence.none(3).plus(fitted, machine.ratios(fitted), SCAN)
        evidence = evidence.plus(held, factor * machine.ratios(held), HELD_OUT)
        tables.append(
            build_table(structure, PricedOperators.of(structure), space, ORT, evidence, prior, timed_once(machine))
        )
    assert [e.latency_ms for e in tables[0].entries.values()] == [e.latency_ms for e in tables[1].entries.values()]
    assert tables[1].held_out.bias_percent < -30
    spreads = [np.abs([e.spread_ms for e in table.entries.values()]).mean() for table in tables]
    assert spreads[1] > 5 * spreads[0]


def test_without_held_out_policies_nothing_is_proven(structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    machine = AdditiveMachine(structure)
    rows = rows_of(space, 30, 0)
    evidence = Evidence.none(3).plus(rows, machine.ratios(rows), FIT)
    with pytest.raises(LatencyError, match="needs held-out policies"):
        build_table(
            structure,
            PricedOperators.of(structure),
            space,
            ORT,
            evidence,
            prior_of(structure, space),
            timed_once(machine),
        )


@pytest.mark.parametrize(("dense_ms", "noise"), [(0.0, 0.1), (np.nan, 0.1), (np.inf, 0.1), (1.0, -0.1), (1.0, np.nan)])
def test_impossible_conditions_are_refused(dense_ms, noise):
    with pytest.raises(LatencyError, match=f"got {dense_ms} ms and {noise}"):
        Conditions(dense_ms=dense_ms, noise=noise, seed=0, again=np.array([]))


def test_without_two_timed_policies_nothing_is_fitted(structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    prior = prior_of(structure, space)
    with pytest.raises(LatencyError, match="at least two timed policies; got 1"):
        fitted_to(structure, prior, Evidence.none(3), 1.0)


def test_policies_with_unknown_geometries_are_left_out_of_a_fit(structure_of, space_of):
    """As scans of widths that the narrowed space no longer has."""
    structure, wide, narrow = structure_of("residual"), space_of("residual"), space_of("residual", 4)
    machine = AdditiveMachine(structure)
    prior = prior_of(structure, narrow)
    inside, outside = rows_of(narrow, 50, 0), rows_of(wide, 50, 1)
    evidence = Evidence.none(3).plus(inside, machine.ratios(inside), FIT)
    misleading = evidence.plus(outside, 3 * machine.ratios(outside), SCAN)
    index = index_of(structure, prior)
    known = (index.numbers(outside) != MISSING).all(axis=1)
    assert 0 < known.sum() < 25
    cleaned = evidence.plus(outside[known], 3 * machine.ratios(outside[known]), SCAN)
    first, second = (fitted_to(structure, prior, evidence, machine.dense_ms) for evidence in (misleading, cleaned))
    np.testing.assert_array_equal(first.entries_ms, second.entries_ms)


def test_the_dense_model_is_met(structure_of, space_of, target):
    """Its latency is the unit of all budgets: it weighs more than a policy that disagrees."""
    machine = AdditiveMachine(structure_of("residual"), noise=0.02, seed=3)
    table = simulated_table(machine, space_of("residual"), target, policies=60)
    dense = np.array([[unit.width for unit in machine.structure.units]])
    assert table.predictor(machine.structure).predict(dense)[0] == pytest.approx(machine.dense_ms, rel=0.01)


def test_where_pytorch_runs_the_dense_model_it_tells_nothing_about_pruned_ones(structure_of, space_of):
    """Every pruned model takes 20 % longer than its operators, the dense one does not."""
    structure, space = structure_of("residual"), space_of("residual")
    machine, prior = AdditiveMachine(structure), prior_of(structure, space)
    rows = rows_of(space, 200, 0)
    evidence = Evidence.none(3).plus(rows, 1.2 * machine.ratios(rows), FIT)
    dense = np.array([[unit.width for unit in structure.units]])
    counts = occurrences(index_of(structure, prior).numbers(np.concatenate([rows, dense])), len(prior))
    errors = {}
    for runtime in ("torch", "onnxruntime"):
        predicted = fitted_to(structure, prior, evidence, machine.dense_ms, runtime).predict(counts)
        errors[runtime] = np.abs(predicted[:-1] / (1.2 * machine.ms(rows)) - 1).max()
        assert predicted[-1] == pytest.approx((1.2 if runtime == "torch" else 1.0) * machine.dense_ms, rel=0.05)
    assert errors["torch"] < 0.01 < errors["onnxruntime"]
    with pytest.raises(LatencyError, match="at least two timed policies; got 0"):
        fitted_to(structure, prior, Evidence.none(3), 1.0, "torch")


def test_a_predictor_of_a_fit_predicts_as_the_fit_does(structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    machine, prior = AdditiveMachine(structure), prior_of(structure, space)
    rows = rows_of(space, 50, 0)
    evidence = Evidence.none(3).plus(rows, machine.ratios(rows), FIT)
    index = index_of(structure, prior)
    fitted = fitted_to(structure, prior, evidence, machine.dense_ms)
    counts = occurrences(index.numbers(rows), len(prior))
    predicted = predictor_of(index, space.levels, fitted).predict_with_sd(rows)
    np.testing.assert_allclose(predicted.latency_ms, fitted.predict(counts))
    np.testing.assert_allclose(predicted.sd_ms, fitted.sd_ms(counts), rtol=1e-4)


# --- refit


def test_a_table_knows_what_removed_branches_save(structure_of, removing_space_of, target, tmp_path):
    """Its prior is the one that scales: half the cost of everything."""
    structure, space = structure_of("blocks"), removing_space_of("blocks")
    machine = AdditiveMachine(structure, noise=0.001)
    varying = PricedOperators.of(structure).varying
    prior = {g: machine.cost(g) / 2 for g in possible_geometries(varying, space, space.unit_names)}
    fitted, held = rows_of(space, 100, 0), rows_of(space, 30, 1)
    units = len(structure.units)
    evidence = Evidence.none(units).plus(fitted, machine.ratios(fitted), FIT).plus(held, machine.ratios(held), HELD_OUT)
    table = build_table(
        structure, PricedOperators.of(structure), space, target.fingerprint(), evidence, prior, timed_once(machine)
    )
    assert (held == 0).any()
    assert table.held_out.mape_percent < 0.3
    table.save(tmp_path / "table.json")
    loaded = LatencyTable.load(tmp_path / "table.json")
    loaded.require_space(space)
    predictor = loaded.predictor(structure)
    assert [0 in widths for widths in predictor.known_widths.values()] == [u.removable for u in structure.units]
    everything = np.array([[0 if u.removable else u.width for u in structure.units]])
    np.testing.assert_allclose(predictor.predict(everything), machine.ms(everything), rtol=0.02)
    again = refit_table(loaded, structure, fitted[:3], machine.ratios(fitted[:3]))
    assert again.held_out.mape_percent < 0.3


def test_a_table_without_width_0_says_so(table, removing_space_of):
    with pytest.raises(LatencyError, match=r"does not know width 0 of unit 'inner\.0'"):
        table.require_space(removing_space_of("residual"))


def test_absent_operators_have_no_column():
    assert occurrences(np.array([[0, ABSENT, 1], [ABSENT, ABSENT, MISSING]]), 2).tolist() == [[1, 1], [0, 0]]
