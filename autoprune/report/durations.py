"""Durations in words."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Return a duration as people say it: `45 s`, `3 min 20 s`, `25 min`, `1 h 10 min`, `30 h`.

    Args:
        seconds: 0 or more.

    Returns:
        At most two units, as finely as an estimate deserves.

    Example:
        >>> duration_text(200), duration_text(4_200)
        ('3 min 20 s', '1 h 10 min')
    """
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 600:
        tens = round(seconds / 10) * 10
        return _two(tens, 60, "min", "s")
    minutes = round(seconds / 60)
    return (
        f"{minutes} min"
        if minutes < 60
        else _two(minutes, 60, "h", "min")
        if minutes < 600
        else f"{minutes / 60:.0f} h"
    )


def _two(number: int, base: int, large: str, small: str) -> str:
    whole, rest = divmod(number, base)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"
