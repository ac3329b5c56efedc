"""An explorer that scores at once and keeps nothing on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autoprune.allocation.limits import fits
from autoprune.allocation.uniform import baselines
from autoprune.records import Policy
from autoprune.search.explore import Explorer, Search
from autoprune.search.strategies import find_strategy
from autoprune.trials import Fidelity, Measurement, TrialResult
from tests import fakes


class InstantBroker:
    """Has the result of a policy as soon as it is enqueued."""

    def __init__(self, score):
        self._score = score
        self.scored: list[TrialResult] = []

    def enqueue(self, policies):
        if policies:
            self.scored += self._score(list(policies))

    def knows(self, policy):
        return policy in {result.policy for result in self.scored}

    def results(self):
        return self.scored


class InstantExplorer(Explorer):
    """Scores by `loss`; a policy whose loss is `None` fails. `asked` are the policies of every call."""

    def __init__(self, search: Search, loss: Callable[[Policy], float | None] = fakes.loss_of) -> None:
        uniform = baselines(search.space, search.dense_widths, search.predict, search.limits)
        super().__init__(search, uniform, executor=None)  # pyright: ignore[reportArgumentType]
        self._loss = loss
        self.asked: list[list[Policy]] = []

    slots = 1  # pyright: ignore[reportAssignmentType]

    def _run(self, policies, limits, stage, sampler=None, refill=None):
        broker = InstantBroker(lambda policies: self._scored(policies, limits))
        broker.enqueue(policies)
        while refill and refill(broker):
            pass
        return broker.scored

    def _scored(self, policies, limits):
        self.asked.append(list(policies))
        costs = self.search.predict(list(policies))
        assert not limits or all(any(fits(row, limit) for limit in limits) for row in costs), "beyond every limit"
        return [self._result(policy) for policy in policies]

    def _result(self, policy: Policy) -> TrialResult:
        loss = self._loss(policy)
        made = {"number": 0, "policy": policy, "fidelity": Fidelity(name="proxy", rung=0), "seed": 0}
        if loss is None:
            return TrialResult(**made, status="failed", error="it broke")
        (costs,) = self.search.predict([policy])
        latency_ms, *sizes = costs.tolist()
        measurement = Measurement(
            score=1 - loss,
            loss=loss,
            latency_ms=latency_ms,
            latency_source="predicted",
            **dict(zip(("params", "macs", "bytes", "activation_bytes"), map(int, sizes), strict=True)),
        )
        return TrialResult(**made, status="done", measurement=measurement)


def explored(strategy: str, loss: Callable[[Policy], float | None] = fakes.loss_of, **changes: object):
    """The explorer after that strategy, on the world of `fakes`."""
    explorer = InstantExplorer(fakes.search(Path("unused"), strategy=strategy, **changes), loss)
    find_strategy(strategy)(explorer)
    return explorer
