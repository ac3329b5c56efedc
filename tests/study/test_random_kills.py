"""The program of random kills: its draws are those of its seeds, and it sees what differs."""

from __future__ import annotations

import json
from pathlib import Path

from random_kills import Kill, Round, Row, append, delivered, differences, rows_of


def test_a_seed_draws_the_same_kills_and_seeds_draw_all_kinds() -> None:
    rounds = [Round.of(seed) for seed in range(200)]
    assert rounds == [Round.of(seed) for seed in range(200)]
    kills = [kill for each in rounds for kill in each.kills]
    assert {len(each.kills) for each in rounds} == {1, 2, 3}
    assert {each.executor for each in rounds} == {"inline", "process"}
    assert {(kill.by, kill.alone) for kill in kills} == {(by, alone) for by in ("time", "file") for alone in (0, 1)}
    assert {int(10 * kill.share) for kill in kills} == set(range(10)), "from the beginning to the end"


def test_a_changed_a_lost_and_a_left_over_file_are_differences_but_no_time_is(tmp_path: Path) -> None:
    model = tmp_path / "models" / "0c3c907c1469"
    model.mkdir(parents=True)

    def write(created: str, score: float, weights: bytes) -> dict[str, object]:
        table = {"created": created, "seconds": len(created), "checksum": created, "dense_ms": 1.5}
        front = {"models": [{"score": score}], "latency_table": table}
        (tmp_path / "latency_table.json").write_text(json.dumps(table))
        (tmp_path / "front.json").write_text(json.dumps(front))
        (tmp_path / "study.db").write_text(created)
        (model / "weights.safetensors").write_bytes(weights)
        return delivered(tmp_path)

    before = write("today", 0.9, b"1")
    assert differences(before, write("one day later", 0.9, b"1")) == []
    assert differences(before, write("today", 0.8, b"2")) == [
        "front.json differs",
        "models/0c3c907c1469/weights.safetensors differs",
    ]
    (model / "weights.safetensors").rename(model / ".c3e1.77.tmp")
    assert differences(before, delivered(tmp_path))[-2:] == [
        "models/0c3c907c1469/.c3e1.77.tmp is left over",
        "models/0c3c907c1469/weights.safetensors is gone",
    ]


def test_kills_are_read_back_from_their_file(tmp_path: Path) -> None:
    kill = Kill(by="file", share=0.25, alone=True)
    common = {"executor": "inline", "stage": "Dense model, 1/2", "seconds": 1.5, **vars(kill)}
    rows = [Row(seed=7, kill=number, outcome=outcome, **common) for number, outcome in ((1, "ok"), (2, "a, b"))]
    for row in rows:
        append(tmp_path / "new" / "kills.csv", [row])
    assert rows_of(tmp_path / "new" / "kills.csv") == rows
    assert rows_of(tmp_path / "none.csv") == rows_of(None) == []
