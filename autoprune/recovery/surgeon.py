"""The optimal brain surgeon's channel order: first goes what costs least after all its readers made up for it.

For a reader with weights W over the columns of its input windows and H their second moment, taking block B of columns
away costs W_B (H^-1_BB)^-1 W_B^T, and the best other weights follow in closed form (Hassibi and Stork 1993, Frantar and
Alistarh 2022). Costs of several readers of one channel are added as shares of what each puts out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autoprune.recovery.consumers import covered_units, find_consumers
from autoprune.recovery.moments import Moments
from autoprune.recovery.recurrent import find_directions
from autoprune.recovery.ridge import ridged
from autoprune.structure import Structure

Array = np.ndarray

_DAMPING = 1e-2
"""Added to the diagonal of H, as a share of its mean: its inverse is updated many times."""

_STEPS = 128
"""A unit of more channels than this loses several in one step."""


def surgeon_order(
    structure: Structure, moments: Mapping[str, Moments], fallback: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """Channels of every unit, most important first; `fallback` ranks the units with a reader that has no moments."""
    consumers = tuple(c for c in find_consumers(structure) if c.weight in moments)
    recurrent = [d for ds in find_directions(structure).values() for d in ds if d.weights[0] in moments]
    covered = covered_units(structure, consumers, recurrent)
    found = {}
    for number, unit in enumerate(structure.units):
        readers = [
            _Reader(
                structure.tensors[c.weight].detach().flatten(1),
                moments[c.weight].second(centred=c.centred),
                c.blocks(number),
            )
            for c in consumers
            if number in c.units
        ]
        readers += [
            _Reader(
                d.matrix([structure.tensors[w] for w in d.weights]),
                moments[d.weights[0]].second(centred=d.centred),
                d.blocks(number),
            )
            for d in recurrent
            if number in d.units
        ]
        found[unit.name] = _ranked(unit.width, readers) if number in covered else list(fallback[unit.name])
    return found


def _ranked(width: int, readers: Sequence[_Reader]) -> list[int]:
    """Greedy backward elimination: take away what costs least, let all readers adapt, repeat."""
    alive, removed = np.ones(width, dtype=bool), []
    while alive.any():
        channels = np.flatnonzero(alive)
        scores = sum(reader.scores(channels) for reader in readers)
        worst = channels[np.argsort(np.asarray(scores), kind="stable")[: max(1, width // _STEPS)]]
        for reader in readers:
            reader.remove(worst)
        alive[worst] = False
        removed += worst.tolist()
    return removed[::-1]


class _Reader:
    """A layer while the channels of one unit, `blocks` of its columns, are taken away: weights, inverse moment."""

    def __init__(self, weight: Tensor, second: Tensor, blocks: Tensor) -> None:
        self._weight = weight.double()
        self._energy = float((self._weight @ second * self._weight).sum()) or 1.0
        self._inverse = torch.linalg.inv(ridged(second, _DAMPING))
        self._blocks = blocks

    def scores(self, channels: Array) -> Array:
        """Relative loss of removing each of the channels: `[channels]`."""
        blocks = self._blocks[channels]
        inner = self._inverse[blocks[:, :, None], blocks[:, None, :]]
        weights = self._weight[:, blocks].permute(1, 2, 0)
        return ((weights * torch.linalg.solve(inner, weights)).sum((1, 2)) / self._energy).numpy()

    def remove(self, channels: Array) -> None:
        """Update weights and inverse for channels that went."""
        gone = self._blocks[channels].flatten()
        rows = self._inverse[gone]
        gain = torch.linalg.solve(rows[:, gone], rows)
        self._weight -= self._weight[:, gone] @ gain
        self._inverse -= rows.T @ gain
