"""From scores to kept channels: local ranking inside each unit, and one global ranking that also chooses the widths."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from autoprune.errors import UsageError
from autoprune.records import Policy

Array = np.ndarray


def channel_order(scores: Mapping[str, Array]) -> dict[str, list[int]]:
    """Channels of each unit from most to least important; ties keep the lower index first."""
    return {name: np.argsort(-values, kind="stable").tolist() for name, values in scores.items()}


def keep_best(order: Mapping[str, list[int]], policy: Policy) -> dict[str, Array]:
    """Local ranking: the best `width` channels of each unit, ascending. Nested: a narrower width keeps a subset."""
    return {name: np.sort(np.asarray(order[name][:width], dtype=np.int64)) for name, width in policy.widths.items()}


def global_widths(scores: Mapping[str, Array], keep: float, multiple_of: int = 1, least: int = 1) -> dict[str, int]:
    """Global ranking: widths when the best share `keep` of all channels is kept under one threshold.

    Scores are divided by their mean within each unit, because their scale differs between units. Widths are rounded to
    the nearest `multiple_of` and stay between `least` and the full width.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"the share of kept channels is above 0 and at most 1; got {keep}")
    if not scores:
        raise UsageError("a global ranking needs at least one unit; none was chosen")
    scaled = {name: values / max(values.mean(), 1e-30) for name, values in scores.items()}
    everything = np.sort(np.concatenate(list(scaled.values())))[::-1]
    threshold = everything[max(round(keep * len(everything)), 1) - 1]
    return {name: round_width(int((v >= threshold).sum()), len(v), multiple_of, least) for name, v in scaled.items()}


def round_width(width: float, full: int, multiple_of: int = 1, least: int = 1) -> int:
    """Nearest multiple, halves up; at least one of it, at most the full width, which need not be a multiple."""
    if multiple_of < 1:
        raise UsageError(f"widths are multiples of 1 or more; got {multiple_of}")
    if width >= full:
        return full
    rounded = max(math.floor(width / multiple_of + 0.5), 1) * multiple_of
    return int(min(max(rounded, least), full))
