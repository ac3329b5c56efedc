"""Patterns of zeros: how they are written, their codes, and how much they leave."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.errors import PolicyError
from autoprune.sparsity.patterns import Pattern
from autoprune.treatments import Treatment, code_of_factors, rank_of_code, timed_code

WRITTEN = ("sparse:80%", "sparse:87.5%", "sparse:99.99%", "2:4", "1:4", "4:8", "sparse:80%@8x1", "2:4@1x16", "8:16@8x1")


@pytest.mark.parametrize("text", [*WRITTEN, *(f"int8+{text}" for text in WRITTEN), "w4+2:4", "int8-dynamic+sparse:5%"])
def test_a_treatment_with_zeros_is_written_and_coded(text: str) -> None:
    treatment = Treatment.parse(text)
    assert str(treatment) == text
    assert Treatment.of_code(treatment.code) == treatment
    assert treatment.code < np.iinfo(np.int64).max
    assert treatment.timed == Treatment(precision=treatment.precision) == Treatment.of_code(timed_code(treatment.code))
    assert rank_of_code(treatment.code) == 0
    assert code_of_factors(treatment.code) == treatment.of_factors.code
    assert treatment.order < Treatment(precision=treatment.precision).order


def test_a_share_is_a_percentage_or_a_number_below_one() -> None:
    assert str(Pattern.parse("sparse:0.875")) == "sparse:87.5%"
    assert Pattern.parse("int8") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *(
            (f"sparse:{share}", "above 0 and below 100 %")
            for share in ("0%", "100%", "-5%", "1.2", "80", "nan%", "", "1")
        ),
        *((text, "N from 1 to M - 1") for text in ("4:2", "4:4", "0:4", "1:1000")),
        *((text, "1 to 255 outputs and inputs") for text in ("sparse:80%@0x1", "2:4@8x0", "sparse:80%@999x1")),
        ("sparse:80%@8", "a pattern is written"),
        ("2:4+sparse:50%", "one pattern; got two"),
        ("rank:8+2:4", "a low rank or a pattern of zeros, not both"),
        ("2:", "a treatment is a precision"),
    ],
)
def test_a_wrong_pattern_is_refused_with_its_rule(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        Treatment.parse(text)


@pytest.mark.parametrize(
    ("text", "blocks", "nonzeros"),
    [
        ("sparse:80%", 39, 39),
        ("2:4", 96, 96),
        ("sparse:50%@4x1", 24, 96),
        ("1:2@2x4", 12, 96),
        ("sparse:99.99%", 1, 1),
    ],
)
def test_counts_of_a_pattern_are_whole_and_the_same_for_arrays(text: str, blocks: int, nonzeros: int) -> None:
    pattern = Pattern.parse(text)
    assert pattern is not None
    outputs, inputs, kernel = (8, 8, 3)
    assert pattern.blocks_left(outputs, inputs, kernel) == blocks
    assert pattern.nonzeros(np.array([outputs, 1]), np.array([inputs, 1]), kernel)[0] == nonzeros


def test_blocks_that_do_not_divide_end_in_smaller_ones() -> None:
    pattern = Pattern.parse("2:4")
    assert pattern is not None
    assert (pattern.divides(3, 8), pattern.divides(3, 6)) == (True, False)
    assert pattern.nonzeros(3, 5) == 3 * (2 + 1)
