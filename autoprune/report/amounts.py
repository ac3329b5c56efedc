"""Numbers as texts: sizes, shares and intervals."""

from __future__ import annotations

import math

NORMAL_95 = 1.96
"""Standard deviations on either side of a mean that hold 95 % of a normal distribution."""


def shown_bytes(number: float | None) -> str:
    """Return a number of bytes in the unit that fits: `42.1 kB`; empty for none."""
    if number is None:
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def score_interval(score: float, examples: int | None) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of examples; `None` where the score is no share or the number is unknown.

    Source:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    Example:
        >>> [round(end, 3) for end in score_interval(0.9, 1000)]
        [0.88, 0.917]
    """
    if not examples or not 0 <= score <= 1:
        return None
    square = NORMAL_95**2
    middle = (score + square / (2 * examples)) / (1 + square / examples)
    half = NORMAL_95 / (1 + square / examples) * math.sqrt(score * (1 - score) / examples + square / (4 * examples**2))
    low, high = min(max(middle - half, 0.0), score), max(min(middle + half, 1.0), score)  # rounding would leave 0 and 1
    return low, high


def shown_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval as text; empty for none."""
    return "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
