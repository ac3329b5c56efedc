import json
from dataclasses import replace

import pytest

from autoprune.errors import LatencyError, RunFolderError
from autoprune.latency.fitting import HeldOut
from autoprune.latency.table import LatencyTable, ProfiledPolicy
from autoprune.latency.target import make_target
from autoprune.records import Geometry


@pytest.fixture
def table(target):
    return LatencyTable(
        target=target.fingerprint(),
        space_id="s",
        structure="abc",
        seed=7,
        created="2026-01-01T00:00:00+00:00",
        dense_ms=0.5,
        intercept_ms=0.01,
        entries_ms={
            Geometry(op="conv2d", c_in=8, c_out=16, height=4, width=4, kernel=(3, 3), stride=(2, 2), fused="relu"): 0.2,
            Geometry(op="linear", c_in=16, c_out=5): 0.003,
        },
        held_out=HeldOut(
            policies=40, mape_percent=1.5, max_percent=4.0, bias_percent=0.1, spearman=0.99, noise_percent=0.6
        ),
        drift_percent=0.4,
        samples=(ProfiledPolicy(widths={"a": 8}, measured_ms=0.4, predicted_ms=0.41, held_out=True),),
        notes=("a note",),
    )


def test_a_table_survives_its_file(table, tmp_path):
    table.save(tmp_path / "deep" / "table.json")
    assert LatencyTable.load(tmp_path / "deep" / "table.json") == table


def test_the_file_says_its_schema_and_units(table, tmp_path):
    table.save(tmp_path / "t.json")
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["schema"] == 1
    assert document["entries"][0]["latency_ms"] == 0.2
    assert {"dense_ms", "intercept_ms", "drift_percent", "created", "seed"} <= document.keys()


def test_a_cut_off_file_is_refused(table, tmp_path):
    path = tmp_path / "t.json"
    table.save(path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(LatencyError, match=r"t\.json: not a latency table, or cut off"):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.pop("entries"),
        lambda d: d.pop("intercept_ms"),
        lambda d: d.update(entries=[]),
        lambda d: d["entries"][0].update(latency_ms="fast"),
        lambda d: d["entries"][0].update(latency_ms=-1),
        lambda d: d["entries"][0].update(colour="red"),
        lambda d: d["entries"][0].pop("op"),
        lambda d: d.update(dense_ms=0),
        lambda d: d.update(held_out=None),
        lambda d: d.update(surprise=1),
    ],
)
def test_a_file_that_was_edited_wrongly_is_refused(edit, table, tmp_path):
    path = tmp_path / "t.json"
    table.save(path)
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(LatencyError, match="autoprune profile"):
        LatencyTable.load(path)


@pytest.mark.parametrize("text", ['{"schema": 2}', "[]", "3"])
def test_another_schema_is_refused(text, tmp_path):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(LatencyError, match="schema 1"):
        LatencyTable.load(tmp_path / "t.json")


def test_an_absent_file_says_how_to_make_one(tmp_path):
    with pytest.raises(LatencyError, match="autoprune profile"):
        LatencyTable.load(tmp_path / "nothing.json")


def test_a_write_that_fails_leaves_the_old_file(table, tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    table.save(path)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunFolderError, match="No space left"):
        replace(table, seed=8).save(path)
    assert LatencyTable.load(path).seed == 7


def test_a_foreign_table_is_refused_with_the_difference(table, target):
    assert table.require(target) is table
    other = make_target("ort-cpu", batch=4)
    with pytest.raises(LatencyError, match="batch: 4 here, 1 there"):
        table.require(other)
    assert table.require(other, allow_foreign=True) is table
