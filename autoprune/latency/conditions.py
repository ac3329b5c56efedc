"""Conditions of charges, put together from others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from autoprune.latency.charges import Decided


def all_and_none(holding: Sequence[Decided], failing: Sequence[Decided]) -> Decided:
    """Return whether all of some conditions hold and none of others."""
    if not holding and not failing:
        return Decided()
    columns = {column for decided in (*holding, *failing) for column in decided.columns}
    return Decided(columns=tuple(sorted(columns)), of=partial(_holds, tuple(holding), tuple(failing)))


def some(holding: Sequence[Decided]) -> Decided:
    """Return whether one of some conditions holds."""
    columns = {column for decided in holding for column in decided.columns}
    return Decided(columns=tuple(sorted(columns)), of=partial(_any_holds, tuple(holding)))


def _any_holds(holding: Sequence[Decided], rows: np.ndarray) -> np.ndarray:
    return np.logical_or.reduce([decided.of(rows).astype(bool) for decided in holding if decided.columns])


def _holds(holding: Sequence[Decided], failing: Sequence[Decided], rows: np.ndarray) -> np.ndarray:
    wanted = [decided.of(rows).astype(bool) for decided in holding]
    unwanted = [~decided.of(rows).astype(bool) for decided in failing]
    return np.logical_and.reduce([*wanted, *unwanted])
