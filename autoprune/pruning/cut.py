"""One policy applied to one model: which channels stay and which branches go, worked out once for all who ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoprune.pruning.ranking import keep_best
from autoprune.records import Policy
from autoprune.structure import GraphModel, Structure
from autoprune.structure.units import Site


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The channels that a policy keeps in a structure.

    `kept_channels` has the ascending indices of each unit, int64 `[width]`.
    """

    structure: Structure
    policy: Policy
    kept_channels: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, structure: Structure, order: Mapping[str, list[int]], policy: Policy) -> Cut:
        """Keep the first channels of every unit's `order`, as many as the policy says."""
        return cls(structure=structure, policy=policy, kept_channels=keep_best(order, policy))

    @cached_property
    def masks(self) -> dict[Site, np.ndarray]:
        """Boolean mask over every labelled dimension: true where it is kept."""
        return self.structure.masks(self.policy, self.kept_channels)

    def shrink(self, *, prove: bool = True) -> GraphModel:
        """Return the really smaller model in evaluation mode.

        Raises:
            ProofError: with `prove`, when it does not compute what the dense model computes.
        """
        return self.structure.shrink(self.policy, self.kept_channels, prove=prove).eval()
