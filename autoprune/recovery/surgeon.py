"""The optimal brain surgeon's channel order: the channel whose removal costs least, after all its readers adapted.

For a reader with weights W `[O, D]` whose input columns have the second moment H `[D, D]`, removing the block B of
columns costs trace(W_B (H^-1_BB)^-1 W_B^T) in squared output error, and the best remaining weights follow in closed
form. Costs of several readers of one channel are added, each as a share of the energy of that reader's outputs.

Source: Hassibi and Stork 1993 (optimal brain surgeon); Frantar and Alistarh 2022, https://arxiv.org/abs/2208.11580
(layer by layer, blocks of weights).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autoprune.recovery.consumers import Consumer, covered_units, find_consumers
from autoprune.recovery.moments import Moments
from autoprune.recovery.recurrent import find_directions
from autoprune.recovery.regression import ridged
from autoprune.structure import Structure

Array = np.ndarray

_DAMPING = 1e-2
"""Added to the diagonal of H, as a share of the mean of that diagonal: the inverse of H is updated many times."""

_STEPS = 128
"""Steps of one elimination: wider units lose several channels in one step."""


def surgeon_order(
    structure: Structure, moments: Mapping[str, Moments], fallback: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """Rank the channels of every unit.

    Args:
        structure: the dense model, whose weights are read.
        moments: `collect_moments` of the model on calibration data.
        fallback: an order of channels by unit, for units with a reader that has no moments.

    Returns:
        The channel numbers of every unit by its name, most important first.
    """
    consumers = tuple(c for c in find_consumers(structure) if c.weight in moments)
    recurrent = [d for ds in find_directions(structure).values() for d in ds if d.weights[0] in moments]
    covered, tensors = covered_units(structure, consumers, recurrent), structure.tensors
    order = {}
    for number, unit in enumerate(structure.units):
        readers = [r for c in consumers if number in c.units for r in _readers(tensors, moments, c, number)]
        readers += [
            _Reader(
                d.matrix([tensors[w] for w in d.weights]),
                moments[d.weights[0]].second(centred=d.centred),
                d.blocks(number),
            )
            for d in recurrent
            if number in d.units
        ]
        order[unit.name] = _ranked(unit.width, readers) if number in covered else list(fallback[unit.name])
    return order


def _readers(
    tensors: Mapping[str, Tensor], moments: Mapping[str, Moments], consumer: Consumer, unit: int
) -> list[_Reader]:
    """Return what reads a unit in a layer: each of its groups by itself, as a share of the whole layer's outputs."""
    weight = consumer.matrix(tensors[consumer.weight].detach(), consumer.groups).double()
    second, blocks = moments[consumer.weight].second(centred=consumer.centred), consumer.blocks(unit)
    if consumer.groups == 1:
        return [_Reader(weight, second, blocks)]
    energy = float((weight @ second * weight).sum()) or 1.0
    return [_Reader(*of_group, blocks, energy) for of_group in zip(weight, second, strict=True)]


def _ranked(width: int, readers: Sequence[_Reader]) -> list[int]:
    """Eliminate channels greedily: remove the cheapest, let all readers adapt, repeat."""
    left, removed = np.ones(width, dtype=bool), []
    while left.any():
        channels = np.flatnonzero(left)
        scores = sum(reader.scores(channels) for reader in readers)
        cheapest = channels[np.argsort(np.asarray(scores), kind="stable")[: max(1, width // _STEPS)]]
        for reader in readers:
            reader.remove(cheapest)
        left[cheapest] = False
        removed += cheapest.tolist()
    return removed[::-1]


class _Reader:
    """Weights and inverse second moment of a layer from which the channels of one unit, `blocks` of columns, go.

    Costs are shares of `energy` (default: that of the layer's outputs).
    """

    def __init__(self, weight: Tensor, second: Tensor, blocks: Tensor, energy: float | None = None) -> None:
        self._weight = weight.to(torch.float64, copy=True)  # it is changed in place, and may be the model's own
        self._energy = energy or float((self._weight @ second * self._weight).sum()) or 1.0
        self._inverse = torch.linalg.inv(ridged(second, _DAMPING))
        self._blocks = blocks

    def scores(self, channels: Array) -> Array:
        """Return the cost of removing each of the channels alone, as a share of the output energy: `[channels]`."""
        blocks = self._blocks[channels]
        inner = self._inverse[blocks[:, :, None], blocks[:, None, :]]
        weights = self._weight[:, blocks].permute(1, 2, 0)
        return ((weights * torch.linalg.solve(inner, weights)).sum((1, 2)) / self._energy).numpy()

    def remove(self, channels: Array) -> None:
        """Adapt the weights and the inverse to the removal of channels."""
        gone = self._blocks[channels].flatten()
        rows = self._inverse[gone]
        gain = torch.linalg.solve(rows[:, gone], rows)
        self._weight -= self._weight[:, gone] @ gain
        self._inverse -= rows.T @ gain
