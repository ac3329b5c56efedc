"""Values of latency: geometries read well, and keep the keys of tables that were made before."""

import json

import pytest

from autoprune.latencies import Geometry, TimeUnit


def test_a_geometry_reads_well() -> None:
    geometry = Geometry(
        op="conv2d", c_in=16, c_out=32, out_rows=14, out_columns=14, kernel=(3, 3), stride=(2, 2), fused="relu"
    )
    assert str(geometry) == "conv2d+relu 16->32 14x14 k3x3 s2x2"


def test_a_geometry_keeps_the_keys_of_tables_made_before() -> None:
    geometry = Geometry(op="conv2d", c_in=16, c_out=32, out_rows=14, out_columns=7, kernel=(3, 3), fused="relu")
    stored = {
        "op": "conv2d", "c_in": 16, "c_out": 32, "height": 14, "width": 7, "kernel": [3, 3], "stride": [],
        "dilation": [], "groups": 1, "fused": "relu",
    }  # fmt: skip
    assert Geometry.from_json(stored) == geometry
    assert json.loads(json.dumps(geometry.to_json())) == stored
    assert list(geometry.to_json()) == list(stored)


@pytest.mark.parametrize(
    ("latencies_ms", "texts"),
    [
        ((0.179, 0.0433, None), ["179 us", "43.3 us", ""]),
        ((1.2345, 0.0433), ["1.23 ms", "0.0433 ms"]),
        ((123.45, 12.345), ["123 ms", "12.3 ms"]),
        ((None,), [""]),
    ],
)
def test_latencies_beside_each_other_have_one_unit(latencies_ms: tuple[float | None, ...], texts: list[str]) -> None:
    unit = TimeUnit.of(latencies_ms)
    assert [unit.shown(each) for each in latencies_ms] == texts
