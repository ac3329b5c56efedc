"""AMC: AutoML for model compression (He et al., ECCV 2018).

An agent goes through the units in order and chooses how much of each to keep. A wall keeps the limit within reach with
all later units at their smallest. The proxy of the whole policy rewards every choice of the episode; no fine-tuning.

Differences: the limits, each with an agent of its own, share the episodes. The agent is smaller (2 x 64 hidden units
instead of 2 x 300), learns four times as often because there are fewer episodes, and from the random ones at the start,
too. Eight episodes are played before it learns from them, so that workers score them together. A policy is moved onto
the limit before it is scored, and the agent learns from the widths that were. The cost is the one that is tightest. The
reward is the negative logarithm of the loss, not of the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from autoprune.allocation.limits import excess
from autoprune.budgets import Limit
from autoprune.records import Policy
from autoprune.search.baselines.ddpg import Ddpg
from autoprune.search.baselines.shared import Array, fitted, score_baselines
from autoprune.search.explore import Explorer, Search
from autoprune.study.spec import SMALLEST_LOSS

_MOST_EPISODES = 400
_TOGETHER = 8
_WARM_UP = 1 / 4
"""Share of the episodes of a limit that are played at random: 100 of 400 in the paper."""

_NOISE, _NOISE_DECAY = 0.5, 0.95
_STATE_SIZE = 6


def amc(explorer: Explorer) -> None:
    """Play the episodes of every limit, one limit after the other, and score each policy that they end with."""
    score_baselines(explorer)
    search = explorer.search
    episodes = max(1, min(_MOST_EPISODES, search.effort.trials) // len(search.limits))
    for place, limit in enumerate(search.limits):
        _play(explorer, limit, episodes, np.random.default_rng([search.run_seed, place]))


def _play(explorer: Explorer, limit: Limit, episodes: int, rng: np.random.Generator) -> None:
    search = explorer.search
    walk, agent = Walk(search, limit), Ddpg(rng, _STATE_SIZE)
    warm_up = round(_WARM_UP * episodes)

    def policy_of(episode: int) -> Policy:
        if episode < warm_up:
            return fitted(search, walk.policy(lambda _: rng.uniform()), limit, rng)
        noise = _NOISE * _NOISE_DECAY ** (episode - warm_up)
        return fitted(search, walk.policy(lambda state: agent.act(state, noise)), limit, rng)

    for start in range(0, episodes, _TOGETHER):
        policies = [policy_of(episode) for episode in range(start, min(start + _TOGETHER, episodes))]
        explorer.score(dict.fromkeys(policies, search.strategy))
        losses = explorer.losses
        for policy in policies:
            if policy in losses:
                agent.learn(*walk.steps(policy), -math.log(max(losses[policy], SMALLEST_LOSS)))


class Walk:
    """The way through the units of a space: what the agent sees at each, and how far it may go there.

    Costs are shares of the limit, those of the tightest cost.
    """

    def __init__(self, search: Search, limit: Limit) -> None:
        self._search, self._limit = search, limit
        self._names = search.space.searched
        self._widest = max((search.dense_widths[name] for name in self._names), default=1)
        space = search.space
        alone = [space.policy({name: space.levels[name][0]}) for name in self._names]
        self._dense, *narrowed = self._costs([space.largest(), *alone])
        self._shares = {name: 1 - cost / self._dense for name, cost in zip(self._names, narrowed, strict=True)}

    def policy(self, choose: Callable[[Array], float]) -> Policy:
        """Go through the units; `choose` gives the share of channels to keep for a state `[6]`.

        Takes the nearest level that the wall lets through; the smallest one when there is none.
        """
        widths: dict[str, int] = {}
        for place, name in enumerate(self._names):
            wanted = choose(self._state(place, widths)) * self._search.dense_widths[name]
            levels = self._search.space.widths_of(name)
            reach = self._costs([self._rest_smallest({**widths, name: level}) for level in levels]) <= 1
            open_levels = [level for level, within in zip(levels, reach, strict=True) if within] or levels[:1]
            widths[name] = min(reversed(open_levels), key=lambda level: abs(level - wanted))
        return self._search.space.policy(widths)

    def steps(self, policy: Policy) -> tuple[Array, Array]:
        """States `[T, 6]` and actions `[T]` that lead to a policy."""
        widths = {name: policy.widths[name] for name in self._names}
        before = [dict(list(widths.items())[:place]) for place in range(len(widths))]
        states = [self._state(place, chosen) for place, chosen in enumerate(before)]
        return np.array(states), np.array([width / self._search.dense_widths[n] for n, width in widths.items()])

    def _state(self, place: int, widths: Mapping[str, int]) -> Array:
        """Position, width and share of cost of a unit; costs saved and left to save; last action: about 0 to 1."""
        name, dense = self._names[place], self._search.dense_widths
        largest, smallest = self._costs([self._search.space.policy(widths), self._rest_smallest(widths)]) / self._dense
        last = widths[self._names[place - 1]] / dense[self._names[place - 1]] if place else 1.0
        position, width = place / len(self._names), dense[name] / self._widest
        return np.array([position, width, self._shares[name], 1 - largest, largest - smallest, last])

    def _rest_smallest(self, widths: Mapping[str, int]) -> Policy:
        space = self._search.space
        return space.policy({name: widths.get(name, space.levels[name][0]) for name in self._names})

    def _costs(self, policies: list[Policy]) -> Array:
        return 1 + excess(self._search.predict(policies), self._limit)
