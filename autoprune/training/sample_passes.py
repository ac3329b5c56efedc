"""Search cost in sample passes: 1 is forward + backward of the dense model for one example."""

from __future__ import annotations

from autoprune.training.state import Resumable
from autoprune.trials import FORWARD_SHARE


class SamplePasses(Resumable):
    """A counter of sample passes; `relative_cost` is the number of MACs of a model as a share of the dense model's."""

    STATE = ("_total",)

    def __init__(self) -> None:
        self._total = 0.0

    @property
    def total(self) -> float:
        """Sample passes counted so far."""
        return self._total

    def forward(self, examples: int, relative_cost: float = 1.0) -> None:
        """Count `examples` that went forward through a model."""
        self._total += FORWARD_SHARE * examples * relative_cost

    def training(self, examples: int, relative_cost: float = 1.0) -> None:
        """Count `examples` that went forward and backward through a model."""
        self._total += examples * relative_cost
