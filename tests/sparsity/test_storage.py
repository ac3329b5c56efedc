"""Bytes of weights with zeros in the forms of a file."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.sparsity.patterns import Pattern
from autoprune.sparsity.storage import DENSE, GROUPS, MASK, ROWS, form_bytes, stored_bytes


@pytest.mark.parametrize(
    ("pattern", "precision", "cheapest"),
    [
        (None, "fp32", DENSE),
        ("sparse:1%", "fp32", DENSE),
        ("sparse:50%", "fp32", MASK),
        ("sparse:99%", "fp32", ROWS),
        ("1:4", "fp32", GROUPS),
        ("2:4", "int8", MASK),
        ("sparse:10%", "int8", DENSE),
        ("sparse:75%", "w4", MASK),
    ],
)
def test_the_cheapest_form_depends_on_pattern_and_precision(pattern: str | None, precision: str, cheapest: str) -> None:
    zeros = None if pattern is None else Pattern.parse(pattern)
    forms = form_bytes(precision, 4, zeros, 64, 32, 9)
    assert min(forms, key=lambda form: forms[form]) == cheapest
    assert stored_bytes(precision, 4, zeros, 64, 32, 9) == forms[cheapest]


def test_bytes_by_hand_and_for_arrays() -> None:
    two_of_four = Pattern.parse("2:4")
    assert form_bytes("fp32", 4, two_of_four, 2, 8) == {DENSE: 64, MASK: 34, ROWS: 32 + 8 + 12, GROUPS: 34}
    assert stored_bytes("int8", 4, None, 2, 8) == 16 + 2 * 4
    assert stored_bytes("fp32", 4, two_of_four, np.array([2, 0]), np.array([8, 8])).tolist() == [34, 0]
