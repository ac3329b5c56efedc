"""Charges of layers whose weight may be two factors: the whole layer, and both of its factors.

The first factor has the kernel of the layer and the rank as its channels out. The second is a linear layer or a 1x1
convolution with the rank as its channels in; what rides on the layer rides on it. Both have the layer's precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from autoprune.latency.charges import Decided, PricedOperator
from autoprune.structure import Dim
from autoprune.structure.tensor_costs import ranks_in_use


def rank_of_layer(dims: Sequence[Dim], column: int) -> Decided:
    """Return the rank of a layer's factors, 0 where its weight is whole.

    Args:
        dims: sizes of the dimensions of the weight.
        column: of rows, which has the code of the layer's treatment.
    """
    units = {unit for dim in dims for unit in dim.units}
    return Decided(columns=(*sorted(units), column), of=partial(ranks_in_use, dims, column))


def whole_or_second(charge: PricedOperator, rank: Decided) -> Iterator[PricedOperator]:
    """Yield the charge of a whole layer, and that of the second factor in its place."""
    yield replace(charge, condition=_where(charge.condition, rank, is_split=False))
    ones = (1,) * len(charge.kernel)
    yield replace(
        charge, kernel=ones, stride=ones, dilation=(), condition=_where(charge.condition, rank, is_split=True),
        factor="second", rank=rank,
    )  # fmt: skip


def first_factor(charge: PricedOperator, rank: Decided, treatment: Decided) -> PricedOperator:
    """Return the charge of the first factor: nothing rides on it, whatever becomes of the charges behind it."""
    condition = _where(Decided(), rank, is_split=True)
    return replace(charge, riders=(), fused="", condition=condition, treatment=treatment, factor="first", rank=rank)


def _where(condition: Decided, rank: Decided, *, is_split: bool) -> Decided:
    """Return a condition that also asks for two factors, or for a whole weight."""
    columns = tuple(sorted({*condition.columns, *rank.columns}))
    return Decided(columns=columns, of=partial(_holds, condition, rank, is_split))


def _holds(condition: Decided, rank: Decided, is_split: bool, rows: np.ndarray) -> np.ndarray:
    return condition.of(rows).astype(bool) & ((rank.of(rows) > 0) == is_split)
