"""The tables of zeros, for scores with known means."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import summarize_sparsity
from summarize_sparsity import difference_table, read_scores, score_table

HEADER = "model,space,method,budget,seed,search_passes,passes,test_score,bytes_share,params,seconds"


def line(method: str, seed: int, score: str, passes: int = 10_000) -> str:
    return f"mlp,nm,{method},12%,{seed},0,{passes},{score},0.1,1,1.0"


def cells(text: str) -> list[str]:
    return [each.strip() for each in text.strip("|").split("|")]


ROWS = [
    line("searched", 0, "1.000"), line("searched", 1, "0.980"), line("searched", 2, "0.990"),
    line("uniform", 0, "0.970"), line("uniform", 1, "0.950"), line("uniform", 2, "0.961"),
    line("LAMP", 0, "0.995"), line("LAMP", 1, "0.990"), line("LAMP", 2, "0.985"),
    line("ERK", 1, "0.900"), line("searched", 3, "0.1", passes=0),
]  # fmt: skip


def test_files_give_means_with_intervals_and_who_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    files[0].write_text("\n".join([HEADER, *ROWS[:5], line("LAMP", 0, "0.1")]) + "\n")
    files[1].write_text("\n".join([HEADER, *ROWS[5:]]) + "\n")  # the last row of a seed counts
    monkeypatch.setattr(sys, "argv", ["summarize_sparsity.py", *map(str, files)])
    summarize_sparsity.main()
    titles, _, scores, empty, heads, _, differences, *_, used = capsys.readouterr().out.splitlines()
    assert cells(titles) == ["model", "space", "bytes", "searched", "uniform", "LAMP", "ERK"]
    # 4.303 times the standard deviation of three seeds, over the root of three.
    assert cells(scores) == ["`mlp`", "`nm`", "12 %", "**99.0** ± 2.5", "96.0 ± 2.5", "**99.0** ± 1.2", "90.0"]
    assert not empty
    assert cells(heads)[3:] == ["searched minus uniform", "searched minus LAMP", "searched minus ERK"]
    assert cells(differences)[3:] == ["+2.97 ± 0.14 ahead", "+0.00 ± 2.15 tie", "+8.00 ?"]
    assert cells(used)[3:] == ["10.0", "10.0", "10.0", "10.0"]


def test_methods_without_a_policy_have_a_dash() -> None:
    rows: list[dict[str, str]] = [dict(zip(HEADER.split(","), text.split(","), strict=True)) for text in ROWS]
    rows.append(rows[0] | {"budget": "6%"})
    scores = read_scores(rows, 10_000)
    assert cells(score_table(scores)[-1]) == ["`mlp`", "`nm`", "6 %", "**100.0**", "-", "-", "-"]
    assert cells(difference_table(scores, "uniform")[-1])[3:] == ["-", "-", "-"]
