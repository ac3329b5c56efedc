"""From scores to kept channels: local ranking inside each unit, and one global ranking that also chooses the widths."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from autoprune.errors import UsageError
from autoprune.records import Policy
from autoprune.structure import Structure

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


def local_widths(structure: Structure, names: Collection[str], keep: float, multiple_of: int = 1) -> dict[str, int]:
    """Local ranking: widths that keep the share `keep` of every unit's channels.

    Units of groups and within groups index one dimension together, such as 32 groups of 16 channels of a group norm.
    Such units together keep the share: the wider one is cut first, and units that meet in several dimensions last.
    Heads and their channels keep the share each.

    Args:
        structure: the dense model.
        names: units that are cut.
        keep: above 0 and at most 1.
        multiple_of: widths are rounded to the nearest multiple.

    Returns:
        The width of each unit in `names`.
    """
    full = {number: unit.width for number, unit in enumerate(structure.units) if unit.name in names}
    widths = {number: round_width(keep * width, width, multiple_of) for number, width in full.items()}
    meetings = [meeting & full.keys() for meeting in _meetings(structure)]
    count = {number: sum(number in meeting for meeting in meetings) for number in full}
    order = sorted((n for n in full if count[n]), key=lambda n: (count[n], -full[n], n))
    widths |= {number: full[number] for number in order}
    for number in order * 2:  # the second round makes up for rounding in the first
        own = [meeting - {number} for meeting in meetings if number in meeting]
        shares = [math.prod(widths[n] / full[n] for n in others) for others in own]
        options = {round_width(width, full[number], multiple_of) for width in range(1, full[number] + 1)}
        widths[number] = min(
            sorted(options, reverse=True),
            key=lambda width: sum(abs(share * width / full[number] - keep) for share in shares),
        )
    return {structure.units[number].name: width for number, width in widths.items()}


def _meetings(structure: Structure) -> set[frozenset[int]]:
    """Return the sets of two or more units of channels that index one part of a parameter's dimension together."""
    channel = {number for number, unit in enumerate(structure.units) if unit.kind == "channel"}
    meetings = set()
    for (kind, _, _), channels in structure.channels.items():
        numbers = sorted(channel & channels.of_unit.keys()) if kind == "parameter" else []
        if len(numbers) > 1:
            inside = np.stack([channels.of_unit[number] >= 0 for number in numbers], axis=1)
            parts = np.unique(inside, axis=0)
            meetings |= {frozenset(n for n, own in zip(numbers, part, strict=True) if own) for part in parts.tolist()}
    return {meeting for meeting in meetings if len(meeting) > 1}
