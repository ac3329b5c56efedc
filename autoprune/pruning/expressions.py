"""Expressions of scores, `0.5*l2+0.5*taylor`: weighted ranks, because values of different scores do not compare."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from autoprune.errors import UsageError, unknown_name

_TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:e-?[0-9]+)?)\*)?(?P<name>[A-Za-z_][\w-]*)")


def parse_scores(text: str, known: Collection[str], kind: str = "score") -> dict[str, float]:
    """Read the name of a score or an expression of several.

    Args:
        text: names joined by `+`, each with a weight above 0 before a `*` (default: 1).
        known: the names that there are.
        kind: what a name is called in messages.

    Returns:
        Weights by name, which sum to 1.

    Raises:
        UsageError: a name is unknown or comes twice, or a weight is no number above 0.

    Example:
        >>> parse_scores("3*l2 + taylor", ("l2", "taylor"))
        {'l2': 0.75, 'taylor': 0.25}
    """
    weights: dict[str, float] = {}
    for part in re.sub(r"\s", "", str(text)).split("+"):
        match = _TERM.fullmatch(part)
        weight = _number(match["weight"] or "1") if match else 0.0
        if match is None or weight <= 0 or match["name"] in weights:
            raise UsageError(
                f"scores are a name, or different names with weights above 0, such as 0.5*l2+0.5*taylor; got {text!r}"
            )
        if match["name"] not in known:
            raise unknown_name(kind, match["name"], known)
        weights[match["name"]] = weight
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if np.isfinite(value) else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value `[n]` from 0 (the lowest) to 1; equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - (counts + 1) / 2) / max(len(values) - 1, 1))[places.reshape(-1)]


def joined_ranks(scores: Sequence[tuple[float, np.ndarray]]) -> np.ndarray:
    """Return the weighted mean of the ranks `[n]` that several scores `[n]` give."""
    return np.sum([weight * ranks(values) for weight, values in scores], axis=0)
