from __future__ import annotations

import pytest

from tests.docs.blocks import ROOT
from tests.docs.scripts import load_script

draw_results = load_script("draw_results")


def test_the_figure_has_the_numbers_of_the_table() -> None:
    table = draw_results.scores((ROOT / "docs/results.md").read_text())
    assert table["**guided**"][25] == (86.7, 90.4, 92.0)
    assert table["uniform"][15] == (38.8, 81.9, 86.7)
    assert 15 not in table["ModelOpt 0.47 FastNAS by FLOPs"]


def test_a_table_without_a_row_of_the_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="uniform"):
        draw_results.scores("| **guided** | 1 / 2 / 3 | 1 / 2 / 3 | 1 / 2 / 3 | 1 / 2 / 3 |")
