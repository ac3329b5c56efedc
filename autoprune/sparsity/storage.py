"""How many bytes a weight takes up in a file, in the cheapest of several forms. This module never imports torch.

- `dense`: all numbers.
- `mask`: the numbers that are left, and a bit for every block.
- `rows`: the numbers that are left, the place of each block in its row, and where rows begin (compressed sparse rows).
- `groups`: of N:M, the numbers that are left, and the place of each block in its group: 2 bits each for 2:4.

Numbers are those of the precision: `int8` has 1 byte for each and a scale for every output, `w8` and `w4` have 1 or
half a byte and a scale for each block of 32 inputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autoprune.sparsity.patterns import Pattern

Sizes = int | np.ndarray

DENSE, MASK, ROWS, GROUPS = "dense", "mask", "rows", "groups"

SCALE_BYTES = 4
POINTER_BYTES = 4
_SCALED_INPUTS = 32
"""Inputs of an output channel that share a scale where weights alone are rounded; the last block is filled up."""

_BITS = {"int8": 8, "int8-dynamic": 8, "w8": 8, "w4": 4}


def stored_bytes(
    precision: str, each: int, pattern: Pattern | None, outputs: Sizes, inputs: Sizes, kernel: Sizes = 1
) -> Any:
    """Return the bytes of weights `[O, I, K]` in their cheapest form; sizes are numbers or arrays of one shape.

    Args:
        precision: of the layer.
        each: bytes of one number of the weight in fp32.
        pattern: of the zeros; `None` where all numbers are stored.
        outputs: O.
        inputs: I.
        kernel: K.
    """
    forms = form_bytes(precision, each, pattern, outputs, inputs, kernel)
    return np.minimum.reduce([*forms.values()])


def form_bytes(
    precision: str, each: int, pattern: Pattern | None, outputs: Sizes, inputs: Sizes, kernel: Sizes = 1
) -> dict[str, Any]:
    """Return the bytes of weights by form, the first one dense; arguments are those of `stored_bytes`."""
    numbers = outputs * inputs * kernel
    scales, bits = SCALE_BYTES * outputs, _BITS.get(precision, 8 * each)
    whole: Any = -(-numbers * bits // 8)
    if precision == "fp32":
        scales = 0 * outputs
    elif precision in ("w4", "w8"):
        blocks = -(-numbers // (np.maximum(outputs, 1) * _SCALED_INPUTS)) * outputs
        scales, whole = SCALE_BYTES * blocks, _SCALED_INPUTS * bits // 8 * blocks
    forms: dict[str, Any] = {DENSE: whole + scales}
    if pattern is None:
        return forms
    left = pattern.blocks_left(outputs, inputs, kernel)
    values = -(-left * math.prod(pattern.block) * bits // 8) + scales
    rows, columns = -(-outputs // pattern.block[0]), -(-inputs // pattern.block[1]) * kernel
    forms[MASK] = values + -(-rows * columns // 8)
    forms[ROWS] = values + left * index_bytes(columns) + POINTER_BYTES * (rows + 1)
    if pattern.of:
        forms[GROUPS] = values + -(-left * place_bits(pattern) // 8)
    return forms


def index_bytes(columns: Sizes) -> Any:
    """Return the bytes of a place among so many: 1, 2 or 4."""
    return np.where(np.asarray(columns) <= 1 << 8, 1, np.where(np.asarray(columns) <= 1 << 16, 2, 4))


def place_bits(pattern: Pattern) -> int:
    """Return the bits of a place in a group of N:M."""
    return max(1, (pattern.of - 1).bit_length())
