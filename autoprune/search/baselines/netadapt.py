"""NetAdapt: platform-aware neural network adaptation (Yang et al., ECCV 2018).

A greedy walk from the largest policy: every step has to save so much of the cost, less from step to step. Every unit
proposes to save it alone, by as few channels as will do, and the proposal of least loss is taken.

Differences: the proxy takes the place of the short fine-tuning after which the original compares the proposals, and
weights do not carry over between steps. The cost is the one that is furthest beyond its limit. A proposal that meets a
limit need save no more. Where no unit alone saves enough, each proposes its next level: the original stops there. Least
loss decides, as in the paper; its published code divides the loss by what was saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autoprune.allocation.limits import excess, fits
from autoprune.budgets import Limit
from autoprune.records import Policy
from autoprune.search.baselines.shared import score_baselines
from autoprune.search.explore import Explorer, Search

_STEPS = 25
_DECAY = 0.96


def netadapt(explorer: Explorer) -> None:
    """Walk until every limit was met, and score the first policy that meets each."""
    search = explorer.search
    score_baselines(explorer)
    policy, unmet, step = search.space.largest(), search.limits, 0
    while unmet:
        (costs,) = search.predict([policy])
        if any(fits(costs, limit) for limit in unmet):
            explorer.score({policy: search.strategy})
            unmet = tuple(limit for limit in unmet if not fits(costs, limit))
        else:
            narrower = proposals(search, policy, unmet, step)
            explorer.score_apart(narrower)
            losses = explorer.losses
            policy = min(narrower, key=lambda proposal: losses.get(proposal, math.inf))
            step += 1


def proposals(search: Search, current: Policy, unmet: Sequence[Limit], step: int) -> list[Policy]:
    """Policies with one unit narrowed to its widest level that saves what this step asks for, or meets a limit."""
    space = search.space
    dense, now = search.predict([space.largest(), current])
    target = max(unmet, key=lambda limit: float(excess(now, limit)))
    most = float(excess(now, target) - excess(dense, target) * _share(step))
    saving, next_levels = [], []
    for name in space.searched:
        levels = reversed(space.widths_of(name))
        narrower = [space.policy({**current.widths, name: level}) for level in levels if level < current.widths[name]]
        if not narrower:
            continue
        costs = search.predict(narrower)
        enough = np.any([excess(costs, target) <= most, *(fits(costs, limit) for limit in unmet)], axis=0)
        next_levels.append(narrower[0])
        saving += [narrower[int(np.argmax(enough))]] if enough.any() else []
    return saving or next_levels


def _share(step: int) -> float:
    """Share of the whole way to the tightest limit that a step takes; of the first `_STEPS` steps they sum to 1."""
    return (1 - _DECAY) / (1 - _DECAY**_STEPS) * _DECAY**step
