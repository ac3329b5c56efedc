"""How the zeros of a network are shared out among its weights, when they are a given share of all.

`local` gives every weight the share; the other rankings give more zeros to weights that matter less.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autoprune.errors import UsageError, unknown_name
from autoprune.sparsity.densities import erk_densities

WEIGHT_RANKINGS = ("local", "global", "zscore", "lamp", "erk")
"""Ways to share out zeros:

- `local`: the same share in every weight.
- `global`: the lowest scores of all weights together.
- `zscore`: as `global`, after the mean of each weight's scores is taken off and they are divided by their deviation.
- `lamp`: as `global`, after every squared score is divided by the sum of those that are not lower in its weight.
- `erk`: by sizes alone, fewer zeros in small weights (Erdos-Renyi kernel).
"""


def zero_shares(scores: Mapping[str, Tensor], share: float, ranking: str = "local") -> dict[str, float]:
    """Return the share of zeros of each weight, so that `share` of all their numbers are zero.

    Args:
        scores: of the numbers of each weight, in its shape; higher is more important.
        share: of all numbers, above 0 and below 1.
        ranking: one of `WEIGHT_RANKINGS`.

    Returns:
        Shares from 0 to less than 1 by name: every weight keeps a number.

    Raises:
        UsageError: the share or the ranking is not as described.

    Source:
        LAMP: Lee et al. 2021, https://arxiv.org/abs/2010.07611; Erdos-Renyi kernel: Evci et al. 2020,
        https://arxiv.org/abs/1911.11134.

    Example:
        >>> scores = {"flat": torch.ones(4), "steep": torch.tensor([0.1, 0.1, 0.1, 9.0])}
        >>> zero_shares(scores, 0.25, "global")
        {'flat': 0.0, 'steep': 0.5}
    """
    if not 0 < share < 1:
        raise UsageError(f"the share of zeros is above 0 and below 1; got {share!r}")
    if ranking not in WEIGHT_RANKINGS:
        raise unknown_name("ranking", ranking, WEIGHT_RANKINGS)
    if ranking == "local":
        return dict.fromkeys(scores, share)
    if ranking == "erk":
        densities = erk_densities({name: tuple(values.shape) for name, values in scores.items()}, 1 - share)
        return {name: 1 - density for name, density in densities.items()}
    compared = {name: _compared(values.flatten().double(), ranking) for name, values in scores.items()}
    everything = torch.cat(list(compared.values()))
    count = min(round(share * len(everything)), len(everything) - 1)
    lowest = everything.argsort(stable=True)[:count]
    gone = torch.zeros(len(everything), dtype=torch.bool, device=everything.device)
    gone[lowest] = True
    parts = gone.split([len(values) for values in compared.values()])
    return {name: min(int(part.sum()), len(part) - 1) / len(part) for name, part in zip(compared, parts, strict=True)}


def _compared(values: Tensor, ranking: str) -> Tensor:
    """Return the scores of one weight so that they compare with those of others."""
    if ranking == "zscore":
        return (values - values.mean()) / values.std(correction=0).clamp_min(1e-30)
    if ranking == "lamp":
        return lamp(values)
    return values


def lamp(values: Tensor) -> Tensor:
    """Return the squares of scores `[n]`, each divided by the sum of the squares that are not lower.

    Source: Lee et al. 2021, https://arxiv.org/abs/2010.07611, equation 2.
    """
    ordered, order = values.square().sort(stable=True)
    not_lower = ordered.flip(0).cumsum(0).flip(0)
    return torch.empty_like(ordered).scatter_(0, order, ordered / not_lower.clamp_min(1e-300))
