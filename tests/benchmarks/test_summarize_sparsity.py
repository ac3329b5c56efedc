"""The table of zeros, for scores with known means."""

from __future__ import annotations

from summarize_sparsity import table


def test_seeds_are_averaged_and_methods_without_a_policy_have_a_dash():
    scores = [("searched", "1.000"), ("searched", "0.980"), ("uniform", "0.970")]
    rows = [
        {"model": "mlp", "space": "nm", "method": method, "budget": "12%", "passes": "10000", "test_score": score}
        for method, score in scores
    ]
    rows.append(rows[0] | {"passes": "0", "test_score": "0.1"})
    *_, line = table(rows, 10_000)
    cells = [text.strip() for text in line.strip("|").split("|")]
    assert cells == ["`mlp`", "`nm`", "12 %", "**99.0** (98.0 to 100.0)", "-", "97.0", *["-"] * 7]
