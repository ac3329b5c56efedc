"""From scores to kept channels: local ranking inside each unit, and one global ranking that also chooses the widths."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from autoprune.errors import UsageError
from autoprune.pruning.rates import lamp
from autoprune.records import Policy
from autoprune.structure import Structure

Array = np.ndarray


def channel_order(scores: Mapping[str, Array]) -> dict[str, list[int]]:
    """Channels of each unit from most to least important; ties keep the lower index first."""
    return {name: np.argsort(-values, kind="stable").tolist() for name, values in scores.items()}


def keep_best(order: Mapping[str, list[int]], policy: Policy) -> dict[str, Array]:
    """Local ranking: the best `width` channels of each unit, ascending. Nested: a narrower width keeps a subset."""
    return {name: np.sort(np.asarray(order[name][:width], dtype=np.int64)) for name, width in policy.widths.items()}


RANKINGS = ("local", "global", "zscore", "lamp")
"""Ways to choose widths: the same share in every unit, or all channels together, with scores of one scale (`global`:
divided by their mean in the unit; `zscore`: by their deviation from it; `lamp`: see `autoprune.pruning.rates`)."""


def _scaled(values: Array, ranking: str) -> Array:
    """Return the scores of one unit so that they compare with those of others."""
    if ranking == "zscore":
        return (values - values.mean()) / max(values.std(), 1e-30)
    if ranking == "lamp":
        return lamp(torch.as_tensor(values, dtype=torch.float64)).numpy()
    return values / max(values.mean(), 1e-30)


def global_shares(scores: Mapping[str, Array], keep: float, ranking: str = "global") -> dict[str, float]:
    """Global ranking: the share of each unit's channels among the best share `keep` of all channels.

    Scores are brought to one scale within each unit, because theirs differ between units; see `RANKINGS`.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"the share of kept channels is above 0 and at most 1; got {keep}")
    if not scores:
        raise UsageError("a global ranking needs at least one unit; none was chosen")
    scaled = {name: _scaled(values, ranking) for name, values in scores.items()}
    everything = np.sort(np.concatenate(list(scaled.values())))[::-1]
    threshold = everything[max(round(keep * len(everything)), 1) - 1]
    kept = {name: max(int((values >= threshold).sum()), 1) for name, values in scaled.items()}  # a unit keeps a channel
    return {name: count / len(scaled[name]) for name, count in kept.items()}


def round_width(width: float, full: int, multiple_of: int = 1, least: int = 1) -> int:
    """Nearest multiple, halves up; at least one of it, at most the full width, which need not be a multiple."""
    if multiple_of < 1:
        raise UsageError(f"widths are multiples of 1 or more; got {multiple_of}")
    if width >= full:
        return full
    rounded = max(math.floor(width / multiple_of + 0.5), 1) * multiple_of
    return int(min(max(rounded, least), full))


def widths_of_shares(structure: Structure, shares: Mapping[str, float], multiple_of: int = 1) -> dict[str, int]:
    """Return the widths that keep a share of the channels of every unit.

    Units of groups and within groups index one dimension together, such as 32 groups of 16 channels of a group norm.
    Such units together keep the geometric mean of their shares: the one with the smallest share is cut first, then the
    wider one, and units that meet in several dimensions last. Heads and their channels keep their shares each.

    Args:
        structure: the dense model.
        shares: above 0 and at most 1, by unit; units that are left out keep all.
        multiple_of: widths are rounded to the nearest multiple.

    Returns:
        The width of each unit in `shares`.
    """
    units = {number: unit for number, unit in enumerate(structure.units) if unit.name in shares}
    full = {number: unit.width for number, unit in units.items()}
    share = {number: shares[unit.name] for number, unit in units.items()}
    widths = {number: round_width(share[number] * width, width, multiple_of) for number, width in full.items()}
    meetings = [meeting & full.keys() for meeting in _meetings(structure)]
    count = {number: sum(number in meeting for meeting in meetings) for number in full}
    order = sorted((n for n in full if count[n]), key=lambda n: (count[n], share[n], -full[n], n))
    widths |= {number: full[number] for number in order}
    for number in order * 2:  # the second round makes up for rounding in the first
        own = [meeting for meeting in meetings if number in meeting]
        wanted = [math.prod(share[n] for n in meeting) ** (1 / len(meeting)) for meeting in own]
        others = [math.prod(widths[n] / full[n] for n in meeting - {number}) for meeting in own]
        options = {round_width(width, full[number], multiple_of) for width in range(1, full[number] + 1)}
        widths[number] = min(
            sorted(options, reverse=True),
            key=lambda width: sum(
                abs(other * width / full[number] - part) for other, part in zip(others, wanted, strict=True)
            ),
        )
    return {unit.name: widths[number] for number, unit in units.items()}


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
