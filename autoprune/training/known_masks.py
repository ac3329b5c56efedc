"""Plan of a training that begins with the zeros of a policy: the places may change, the patterns stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from autoprune.sparsity.masks import pattern_mask
from autoprune.sparsity.patterns import Pattern
from autoprune.task.base import Task
from autoprune.training.masked import parameters_named
from autoprune.training.state import Resumable
from autoprune.training.unit_groups import Groups, weight_groups


@dataclass(kw_only=True)
class KnownMasks(Resumable):
    """Weights that have their zeros, each in a pattern of its own (see `Plan`).

    Args:
        masks: of parameters by name, bool in their shapes; true where a weight stays at the beginning.
        patterns: of the same parameters.
    """

    STATE = ("passes",)

    masks: Mapping[str, Tensor]
    patterns: Mapping[str, Pattern]
    groups: list[Groups] = field(default_factory=list)
    passes: float = 0.0

    def begin(self, model: nn.Module, task: Task | None) -> None:
        """Find the weights; `UsageError` when the model has no parameter of a name."""
        del task
        self.groups = weight_groups(parameters_named(model, self.masks))

    def kept(self, share: float = 1.0) -> list[Tensor]:
        """Return which weights stay at the beginning, whatever the share: they are zero already."""
        del share
        return [self.masks[group.name].flatten() for group in self.groups]

    def best(self, number: int, scores: Tensor) -> Tensor:
        """Return the highest scores `[width]` that the pattern of one weight allows, bool `[width]`."""
        name = self.groups[number].name
        return pattern_mask(scores.view(self.masks[name].shape), self.patterns[name]).flatten()
