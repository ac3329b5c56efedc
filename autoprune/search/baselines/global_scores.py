"""One threshold over the importance of all channels: global magnitude and global Taylor pruning.

Channels are ranked across the network by l2 norm (Han et al., Learning both weights and connections, NeurIPS 2015, for
single weights) or by first-order Taylor expansion (Molchanov et al., Importance estimation for neural network pruning,
CVPR 2019), and divided by the mean of their unit as Torch-Pruning does (Fang et al., DepGraph, CVPR 2023). These prune
a share of the channels, and in steps; here it is one cut of the dense network, at the lowest threshold that meets the
limit. Widths are rounded down to a level of the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from autoprune.records import Policy, SearchSpace
from autoprune.search.baselines.shared import Array, score_baselines, score_first_fitting, sorted_importance
from autoprune.search.explore import Explorer


def global_threshold(explorer: Explorer) -> None:
    """Score, for every limit, the largest policy that one threshold over `importance` gives within it."""
    importance = sorted_importance(explorer.search)
    score_baselines(explorer)
    score_first_fitting(explorer, policies_by_threshold(explorer.search.space, importance))


def policies_by_threshold(space: SearchSpace, importance: Mapping[str, Array]) -> list[Policy]:
    """Every policy that some threshold gives, from the largest to the smallest of the space.

    `importance` of every searched unit, `[width]`, is sorted, the largest first. A unit keeps the largest level that
    its channels at or above the threshold fill; with any such channel, at least its smallest level above 0.
    """
    scaled = {name: values / max(float(values.mean()), 1e-30) for name, values in importance.items()}
    lasts = {name: _last_kept(space.widths_of(name), scaled[name]) for name in space.searched}
    thresholds = np.unique([np.inf, *(value for values in lasts.values() for value in values)])
    return [
        space.policy({name: space.levels[name][int((lasts[name] >= threshold).sum()) - 1] for name in space.searched})
        for threshold in thresholds
    ]


def _last_kept(levels: Sequence[int], importance: Array) -> Array:
    """The highest threshold at which a unit keeps each level, `[levels]`, not ascending; infinite for the smallest."""
    channels = [level if below > 0 else 1 for below, level in pairwise(levels)]
    return np.array([np.inf, *(importance[channel - 1] for channel in channels)])
