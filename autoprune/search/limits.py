"""What it means that a policy fits a latency limit; one definition for every file of the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autoprune.errors import BudgetError
from autoprune.records import Policy, SearchSpace

Predict = Callable[[Sequence[Policy]], npt.NDArray[np.floating[Any]]]
"""Predicted latency in milliseconds, one entry per policy."""

# A predictor may round differently for one policy than for a hundred at once.
TOLERANCE = 1e-6


def excess(latency_ms: float, limit_ms: float) -> float:
    """How far a latency is beyond the limit, as a share of the limit; 0 or less when it fits."""
    return latency_ms / limit_ms - 1 - TOLERANCE


def fits(latency_ms: npt.ArrayLike, limit_ms: float) -> npt.NDArray[np.bool_]:
    """Mask of the latencies that fit the limit."""
    return np.asarray(latency_ms, dtype=float) <= limit_ms * (1 + TOLERANCE)


def require_reachable(space: SearchSpace, predict: Predict, limits_ms: Sequence[float]) -> None:
    """Raise `BudgetError` unless the smallest policy of the space fits every limit; the error states the floor."""
    if not limits_ms:
        raise BudgetError("a search needs at least one latency budget; got none")
    floor_ms = float(predict([space.smallest()])[0])
    if not fits(floor_ms, min(limits_ms)):
        raise BudgetError(
            f"no policy of this space is as fast as {min(limits_ms):.4g} ms; the smallest takes {floor_ms:.4g} ms. "
            "Raise the budget, or allow smaller widths in the search space."
        )
