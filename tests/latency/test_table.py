import json
from dataclasses import replace

import numpy as np
import pytest

from autoprune.device.address import Address
from autoprune.device.connect import make_target
from autoprune.errors import LatencyError, MissingEntryError, RunFolderError
from autoprune.latency.deviations import DRAWS
from autoprune.latency.evidence import refit_table
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.table import CANDIDATE, FIT, HELD_OUT, SCAN, LatencyTable
from autoprune.records import Policy, SearchSpace, digest_of
from autoprune.treatments import Treatment
from tests.machines import doubled


@pytest.fixture
def path(table, tmp_path):
    table.save(tmp_path / "t.json")
    return tmp_path / "t.json"


def edited(path, edit, sign=True):
    """Change the stored table; `sign` gives it a checksum that fits, as a damaged program would."""
    document = json.loads(path.read_text())
    edit(document)
    if sign:
        del document["checksum"]
        document["checksum"] = digest_of(document, length=32)
    path.write_text(json.dumps(document))


def test_a_table_survives_its_file(table, tmp_path):
    table.save(tmp_path / "deep" / "table.json")
    loaded = LatencyTable.load(tmp_path / "deep" / "table.json")
    assert loaded == table
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "deep" / "table.json").read_bytes()


def test_a_loaded_table_predicts_the_same(table, path, structure_of):
    structure = structure_of("residual")
    rows = np.array([list(sample.widths.values()) for sample in table.samples])
    predicted, wanted = (t.predictor(structure).predict_with_sd(rows) for t in (LatencyTable.load(path), table))
    np.testing.assert_array_equal(predicted.latency_ms, wanted.latency_ms)
    np.testing.assert_array_equal(predicted.sd_ms, wanted.sd_ms)


def test_the_file_says_its_schema_units_and_counts(table, path):
    document = json.loads(path.read_text())
    assert document["schema"] == 3
    entry = next(iter(table.entries.values()))
    assert document["entries"][0]["latency_ms"] == entry.latency_ms
    assert document["entries"][0]["prior_ms"] == entry.prior_ms
    assert len(document["entries"][0]["spread_ms"]) == DRAWS
    assert document["sample_counts"] == {FIT: 120, HELD_OUT: 40}
    assert {"dense_ms", "remainder_ms", "drift_percent", "created", "seed", "noise", "again_ms"} <= document.keys()


def test_a_cut_off_file_is_refused(path):
    path.write_text(path.read_text()[:-40])
    with pytest.raises(LatencyError, match=r"t\.json: not a latency table, or cut off"):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["entries"][3].update(latency_ms=d["entries"][3]["latency_ms"] * 0.9),
        lambda d: d["entries"].pop(),
        lambda d: d.update(dense_ms=d["dense_ms"] * 2),
        lambda d: d["target"].update(cpu="faster"),
        lambda d: d["held_out"].update(mape_percent=0.1),
        lambda d: d["useful"].update({"stem.0": [8]}),
        lambda d: d.pop("checksum"),
        lambda d: d.update(checksum="0" * 32),
    ],
)
def test_a_file_that_was_edited_by_hand_is_refused(edit, path):
    edited(path, edit, sign=False)
    with pytest.raises(LatencyError, match="checksum does not fit"):
        LatencyTable.load(path)


def test_another_order_of_the_keys_is_no_change(table, path):
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert LatencyTable.load(path).dense_ms == table.dense_ms


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.pop("entries"),
        lambda d: d.pop("remainder_ms"),
        lambda d: d.pop("space"),
        lambda d: d.pop("useful"),
        lambda d: d.update(entries=[]),
        lambda d: d["entries"][0].update(latency_ms="fast"),
        lambda d: d["entries"][0].update(latency_ms=-1),
        lambda d: d["entries"][0].update(latency_ms=float("nan")),
        lambda d: d["entries"][0].update(colour="red"),
        lambda d: d["entries"][0].pop("op"),
        lambda d: d["entries"][0].pop("spread_ms"),
        lambda d: d["entries"][0]["spread_ms"].pop(),
        lambda d: d.update(dense_ms=0),
        lambda d: d.update(dense_ms=float("inf")),
        lambda d: d.update(remainder_ms=-0.1),
        lambda d: d.update(held_out=None),
        lambda d: d.update(surprise=1),
        lambda d: d["samples"][0].update(role="other"),
        lambda d: d["samples"][0].update(measured_ms=0),
        lambda d: d["samples"][0].pop("widths"),
        lambda d: d.update(samples=None),
        lambda d: d["space"].update(levels={"a": []}),
    ],
)
def test_a_file_with_a_wrong_value_is_refused_even_if_its_checksum_fits(edit, path):
    edited(path, edit)
    with pytest.raises(LatencyError, match=r"t\.json: a value is missing or wrong.*autoprune profile"):
        LatencyTable.load(path)


def test_an_entry_that_comes_twice_is_named(path):
    edited(path, lambda d: d["entries"].append(d["entries"][0] | {"latency_ms": 9.0}))
    with pytest.raises(LatencyError, match=r"`conv2d\+relu 1->\d 8x8 k3x3` has more than one entry"):
        LatencyTable.load(path)


def test_samples_that_are_missing_are_noticed(path):
    edited(path, lambda d: d["samples"].pop())
    with pytest.raises(LatencyError, match="reports 40 held-out policies, but their samples are missing"):
        LatencyTable.load(path)


@pytest.mark.parametrize("text", ['{"schema": 2}', '{"schema": 6}', "{}", "[]", "3"])
def test_another_schema_is_refused(text, tmp_path):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(LatencyError, match="schema 3 to 5"):
        LatencyTable.load(tmp_path / "t.json")


def test_an_absent_file_says_how_to_make_one(tmp_path):
    with pytest.raises(LatencyError, match="autoprune profile"):
        LatencyTable.load(tmp_path / "nothing.json")


def test_a_write_that_fails_leaves_the_old_file(table, path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunFolderError, match="No space left"):
        replace(table, seed=8).save(path)
    assert LatencyTable.load(path) == table


def test_a_foreign_table_is_refused_with_the_difference(table, target):
    assert table.require(target) is table
    other = make_target("ort-cpu", batch=4)
    with pytest.raises(LatencyError, match="batch: 4 here, 1 there") as caught:
        table.require(other)
    assert "digest" not in str(caught.value)
    assert table.require(other, allow_foreign=True) is table


def test_a_table_read_from_its_file_is_of_the_same_target(path, target):
    assert LatencyTable.load(path).require(target)
    assert LatencyTable.load(path).require(replace(target, address=Address(login="me@board")))


def test_the_predictor_of_another_model_is_refused(table, structure_of):
    with pytest.raises(LatencyError, match=r"of another model.*autoprune profile") as caught:
        table.predictor(structure_of("flat"))
    assert table.structure in str(caught.value)
    assert structure_of("flat").digest() in str(caught.value)


def test_the_predictor_sums_the_entries_of_the_table(table, structure_of):
    structure = structure_of("residual")
    rows = np.array([list(sample.widths.values()) for sample in table.samples])
    once, twice = (t.predictor(structure).predict(rows) for t in (table, doubled(table)))
    np.testing.assert_allclose(twice - table.remainder_ms, 2 * (once - table.remainder_ms))
    np.testing.assert_allclose(once, [sample.predicted_ms for sample in table.samples])
    assert table.predictor(structure).known_widths == dict(table.known)


def test_samples_are_counted_by_role(table):
    extra = replace(table.samples[0], role=CANDIDATE)
    assert replace(table, samples=(*table.samples, extra, replace(extra, role=SCAN))).counts == {
        FIT: 120,
        HELD_OUT: 40,
        CANDIDATE: 1,
        SCAN: 1,
    }


def test_operators_are_split_by_whether_a_unit_changes_them(structure_of):
    priced = PricedOperators.of(structure_of("upsampling"))
    varying, constant = priced.varying, priced.constant
    assert all(op.units for op in varying)
    assert not any(op.units for op in constant)
    assert constant == ()
    assert {op.op for op in varying} == {"conv2d", "conv_transpose2d", "mean", "linear"}
    assert PricedOperators.of(structure_of("residual")).constant == ()


def test_a_table_with_treatments_comes_back_whole(treated_table, structure_of, tmp_path):
    path = tmp_path / "table.json"
    treated_table.save(path)
    loaded = LatencyTable.load(path)
    assert loaded == treated_table
    stored = json.loads(path.read_text())
    assert stored["schema"] == 4
    layer = loaded.layers[0]
    assert set(stored["known"][layer]) == {"fp32", "int8"}
    assert any(sample.treatments for sample in loaded.samples)
    structure = structure_of("residual")
    policies = [sample.policy for sample in loaded.samples]
    predicted = loaded.predictor(structure).predict(policies)
    np.testing.assert_allclose(predicted, [sample.predicted_ms for sample in loaded.samples])
    assert loaded.held_out.mape_percent < 8
    assert loaded.held_out.spearman > 0.95
    widths = structure.widths([structure.dense_policy()])
    np.testing.assert_allclose(
        loaded.predictor(structure).predict(widths), loaded.predictor(structure).predict([structure.dense_policy()])
    )


def test_accuracy_levels_stay_with_a_table(treated_table, structure_of, tmp_path):
    path, levels = tmp_path / "table.json", {"w4": 1}
    replace(treated_table, accuracy_levels=levels).save(path)
    loaded = LatencyTable.load(path)
    assert loaded.accuracy_levels == levels
    assert json.loads(path.read_text())["schema"] == 5
    rows = np.zeros((0, len(treated_table.known)), dtype=np.int64)
    assert refit_table(loaded, structure_of("residual"), rows, np.zeros(0)).accuracy_levels == levels


def test_a_table_of_widths_has_the_schema_that_it_had(table):
    stored = table.to_json()
    assert stored["schema"] == 3
    assert not any("treatment" in value for value in [*stored["entries"], *stored["samples"]])


def test_unknown_treatments_are_refused(treated_table, table, structure_of, treated_space_of):
    treated_table.require_space(table.space)
    treated = treated_space_of("residual").levels
    layers = {name: levels for name, levels in treated.items() if name in treated_table.layers}
    with pytest.raises(LatencyError, match=r"treatment int8 of layer .* only fp32"):
        table.require_space(SearchSpace(id="", levels={**table.space.levels, **layers}))
    layer = treated_table.layers[0]
    w4 = Policy(space_id="", widths=table.space.largest().widths, treatments={layer: Treatment(precision="w4")})
    with pytest.raises(MissingEntryError, match=f"treatment w4 of layer '{layer}'; it knows fp32, int8"):
        treated_table.predictor(structure_of("residual")).predict([w4])


def test_a_refit_learns_from_treated_candidates(treated_table, structure_of):
    structure = structure_of("residual")
    policies = [sample.policy for sample in treated_table.samples if sample.treatments][:8]
    rows = structure.rows(policies, treated_table.layers)
    again = refit_table(treated_table, structure, rows, np.full(len(rows), 0.5))
    assert again.continues(treated_table)
    assert [sample.policy for sample in again.samples[-8:]] == policies
