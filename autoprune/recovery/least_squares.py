"""Least-squares reconstruction: after channels go, the weights that read them make up for the loss.

For a convolution or linear layer with weights W over the columns of its input patches, and H the second moment of those
patches on calibration data, the best weights on the kept columns S alone are

    W_S = W H[:, S] (H[S, S] + ridge)^-1

for every output row by itself (optimal brain surgeon; Hassibi and Stork 1993, Frantar and Alistarh 2022). So one
solution serves every policy that keeps the same input channels, whatever it does to the outputs. Where the layer has a
bias, or a batch norm follows that is recalibrated afterwards, H is centred: the best intercept is part of the solution.

Channels are ranked by the same measure: those whose removal costs the least, after all consumers made up for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import PolicyError, UsageError
from autoprune.pruning import channel_order, keep_best, score_units
from autoprune.records import Policy
from autoprune.recovery.batchnorm import recalibrate_on
from autoprune.recovery.moments import Consumer, Moments, collect_moments, find_consumers
from autoprune.structure import GraphModel, Structure, analyze
from autoprune.structure.shrink import Array

_RIDGE = 1e-3
"""Added to the diagonal of H in a solution, as a share of its mean."""

_DAMPING = 1e-2
"""The same for the inverse that ranks channels: it is updated many times."""

_MOST_CACHED_BYTES = 1 << 28
"""Solutions beyond this are forgotten, the oldest first."""

_BATCH_SIZE = 128

_STEPS = 128
"""A unit of more channels than this loses several in one step of the ranking."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Consumers of one dense model with the moments of their inputs, and the solutions found so far.

    A solution is made once for all policies that keep the same input channels.
    """

    structure: Structure
    consumers: tuple[Consumer, ...]
    moments: Mapping[str, Moments]
    _solutions: dict[tuple[str, bytes], tuple[Tensor, Tensor | None]] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, structure: Structure, moments: Mapping[str, Moments]) -> Reconstruction:
        """Put a structure and the moments of its consumers together."""
        found = tuple(c for c in find_consumers(structure) if c.weight in moments)
        return cls(structure=structure, consumers=found, moments=moments)

    @property
    def covered(self) -> frozenset[int]:
        """Units of which every reader is reconstructed or needs it not (depthwise layers)."""
        readers: dict[int, set[str]] = {}
        for number, unit in enumerate(self.structure.units):
            readers[number] = {m.parameter for m in unit.members if m.dim == 1}
        known = {c.weight for c in self.consumers}
        return frozenset(u for u, names in readers.items() if names and names <= known)

    def apply(self, model: GraphModel, masks: Mapping[tuple[str, str, int], Array]) -> None:
        """Write the solutions for living `masks` into a shrunk model, in place."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for consumer in self.consumers:
                kept = masks.get(("parameter", consumer.weight, 1))
                target = parameters.get(consumer.weight)
                if target is None or kept is None or kept.all() or not kept.any():
                    continue
                weight, bias = self._solution(consumer, kept)
                rows = masks.get(("parameter", consumer.weight, 0))
                chosen = slice(None) if rows is None else torch.from_numpy(np.flatnonzero(rows))
                target.copy_(weight[chosen].reshape(target.shape))
                if bias is not None and consumer.bias is not None:
                    parameters[consumer.bias].copy_(bias[chosen])

    def _solution(self, consumer: Consumer, kept: Array) -> tuple[Tensor, Tensor | None]:
        """Weights `[O, S]` and bias `[O]` on the kept input channels."""
        key = (consumer.weight, np.packbits(kept).tobytes())
        if key not in self._solutions:
            self._solutions[key] = self._solved(consumer, consumer.columns(np.flatnonzero(kept)))
            cached = sum(weight.nbytes for weight, _ in self._solutions.values())
            while cached > _MOST_CACHED_BYTES and len(self._solutions) > 1:
                weight, _ = self._solutions.pop(next(iter(self._solutions)))
                cached -= weight.nbytes
        return self._solutions[key]

    def _solved(self, consumer: Consumer, columns: Array) -> tuple[Tensor, Tensor | None]:
        weight = self.structure.tensors[consumer.weight].detach().double().flatten(1)
        moments = self.moments[consumer.weight]
        second = moments.second(centred=consumer.centred)
        inner = _ridged(second[columns][:, columns], _RIDGE)
        solved = torch.linalg.solve(inner, second[columns] @ weight.T).T
        if consumer.bias is None:
            return solved.float(), None
        dense_bias = self.structure.tensors[consumer.bias].detach().double()
        bias = dense_bias + weight @ moments.mean - solved @ moments.mean[columns]
        return solved.float(), bias.float()

    def order(self, fallback: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Channels of every unit, most important first; `fallback` ranks the units that no consumer covers."""
        found = {}
        for number, unit in enumerate(self.structure.units):
            ranked = self._ranked(number) if number in self.covered else None
            found[unit.name] = ranked if ranked is not None else list(fallback[unit.name])
        return found

    def _ranked(self, unit: int) -> list[int]:
        """Greedy backward elimination: take away what costs least, let all consumers adapt, repeat."""
        width = self.structure.units[unit].width
        readers = [_Reader(self, consumer, unit) for consumer in self.consumers if unit in consumer.units]
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
    """One consumer while the channels of one unit are taken away: its weights and inverse second moment."""

    def __init__(self, reconstruction: Reconstruction, consumer: Consumer, unit: int) -> None:
        second = reconstruction.moments[consumer.weight].second(centred=consumer.centred)
        self._weight = reconstruction.structure.tensors[consumer.weight].detach().double().flatten(1)
        self._energy = float((self._weight @ second * self._weight).sum()) or 1.0
        self._inverse = torch.linalg.inv(_ridged(second, _DAMPING))
        self._blocks = consumer.blocks(unit)

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


def _ridged(matrix: Tensor, share: float) -> Tensor:
    extra = share * float(matrix.diagonal().mean())
    return matrix + torch.eye(len(matrix), dtype=matrix.dtype) * max(extra, 1e-12)


def recover(
    model: nn.Module,
    policy: Policy | Mapping[str, int],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    scores: str = "l2",
) -> GraphModel:
    """Shrink a trained model to a policy and repair it without labels or gradients: least squares, then batch norms.

    Moments of all layers' inputs are held in memory: 8 bytes times the square of a layer's input columns.

    Args:
        model: the dense model, which is not changed.
        policy: widths by unit name; units that are left out keep their full width.
        batches: tuples of input tensors, batch dimension first, of a few hundred training examples.
        scores: how channels are ranked in units that some reader of theirs keeps from being reconstructed.

    Returns a new module in evaluation mode, with the same names of parameters. Raises `UsageError` without batches,
    `PolicyError` for a unit or a width that the model does not have, `StructureError` for one that cannot be traced.
    """
    found = _checked(batches)
    structure = analyze(model, tuple(x[:1] for x in found[0]))
    given = policy.widths if isinstance(policy, Policy) else policy
    unknown = given.keys() - structure.full_widths.keys()
    if unknown:
        names = ", ".join(structure.full_widths)
        raise PolicyError(f"the model has no unit {', '.join(sorted(unknown))}; it has {names}")
    wanted = Policy(space_id=structure.digest(), widths=structure.full_widths | dict(given))
    reconstruction = Reconstruction.of(structure, collect_moments(structure, found))
    keep = keep_best(reconstruction.order(channel_order(score_units(structure, scores))), wanted)
    shrunk = structure.shrink(wanted, keep).eval()
    reconstruction.apply(shrunk, structure.masks(wanted, keep))
    recalibrate_on(shrunk, tuple(x[:2] for x in found[0]), _equal_batches(found))
    return shrunk


def _checked(batches: Iterable[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    found = list(batches)
    if not found:
        raise UsageError("a reconstruction needs at least one batch of inputs; got none")
    for batch in found:
        tensors = isinstance(batch, tuple | list) and bool(batch) and all(isinstance(x, Tensor) for x in batch)
        if not tensors or len({len(x) for x in batch}) != 1:
            kind = [tuple(getattr(x, "shape", ())) for x in batch] if tensors else type(batch).__name__
            raise UsageError(f"a batch is a tuple of input tensors that are equally long; got {kind}")
    return [tuple(batch) for batch in found]


def _equal_batches(batches: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The same examples in batches of one size, as far as they fill them: statistics of few examples are noise."""
    joined = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    size = min(_BATCH_SIZE, len(joined[0]))
    starts = range(0, len(joined[0]) // size * size, size)
    return [tuple(x[start : start + size] for x in joined) for start in starts]
