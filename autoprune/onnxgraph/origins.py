"""Where the elements of weights come from that an exporter made out of parameters before it wrote the file.

A table of positions that is looked up by fixed numbers, sliced or permuted is stored as the result, under a name that
says nothing. Each of its elements still equals one of the parameter, which tells the elements that a policy keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from autoprune.errors import LatencyError

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A parameter of the state dict, and for every element of a weight `[...]` its flat position in it."""

    parameter: str
    positions: Array

    def keep(self, weight: Array, indices: tuple[Array | None, ...], shape: tuple[int, ...]) -> Array:
        """The elements of `weight` that stay when the parameter, of `shape`, keeps `indices` of its dimensions.

        Raises `LatencyError` when they are no block of it.
        """
        kept = np.zeros(shape, dtype=bool)
        kept[np.ix_(*(np.arange(n) if i is None else i for i, n in zip(indices, shape, strict=True)))] = True
        stay = kept.ravel()[self.positions]
        dims = range(stay.ndim)
        block = np.ix_(*(np.flatnonzero(stay.any(axis=tuple(d for d in dims if d != dim))) for dim in dims))
        if not stay[block].all():
            raise LatencyError(f"a weight made of {self.parameter!r} keeps no block of it")
        return weight[block]


def find_origins(weights: Mapping[str, Array], parameters: Mapping[str, Array]) -> dict[str, Origin]:
    """The origin of every weight all of whose elements are in one parameter, each once in it.

    One whose elements are all equal has none: a number such as 1 may be in any parameter.
    """
    origins, weights = {}, {name: weight for name, weight in weights.items() if np.ptp(weight)}
    for parameter, values in parameters.items():
        order = np.argsort(values, axis=None)
        ordered = values.ravel()[order]
        for name in weights.keys() - origins.keys():
            weight = weights[name]
            places = np.searchsorted(ordered, weight).clip(max=ordered.size - 1)
            after = (places + 1).clip(max=ordered.size - 1)
            once = (ordered[after] != weight) | (places == ordered.size - 1)
            if (once & (ordered[places] == weight)).all():
                origins[name] = Origin(parameter=parameter, positions=order[places])
    return origins


def repeats(tensor: torch.Tensor) -> bool:
    """Whether two elements of a tensor are equal."""
    return tensor.unique().numel() < tensor.numel()


def made_distinct(tensors: Iterable[torch.Tensor]) -> None:
    """Give the elements of each tensor, in place, values of its own range no two of which are equal."""
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors:
        values = torch.linspace(0.1, 1.0, tensor.numel())[torch.randperm(tensor.numel(), generator=generator)]
        tensor.copy_(values.reshape(tensor.shape) * tensor.abs().max().clamp(min=0.02))
