"""A workbench: the task, its trained dense model, its structure and the channel order, as every stage needs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from autoprune.evaluation.costs import sizes
from autoprune.pruning import keep_best
from autoprune.records import Policy
from autoprune.recovery.evaluate import predict_outputs
from autoprune.structure import GraphModel, Structure
from autoprune.task.base import Task


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is the same for all trials of a run. `order` ranks the channels of each unit, most important first."""

    task: Task
    dense: nn.Module
    structure: Structure
    order: dict[str, list[int]]

    def shrink(self, policy: Policy) -> GraphModel:
        """The pruned model of a policy with the dense model's weights, in evaluation mode."""
        model = self.structure.shrink(policy, keep_best(self.order, policy))
        model.eval()
        return model

    def relative_cost(self, policy: Policy) -> float:
        """MACs of a policy as a share of the dense model's: what its sample passes count."""
        return self.sizes(policy)["macs"] / max(self.sizes(self.structure.dense_policy())["macs"], 1)

    def sizes(self, policy: Policy) -> dict[str, int]:
        """`params`, `macs`, `bytes` and `activation_bytes` of a policy."""
        found = sizes(self.structure, self.structure.widths([policy]))
        return {name: int(of_policy) for name, (of_policy,) in found.items()}

    @cached_property
    def dense_outputs(self) -> Tensor:
        """Outputs of the dense model on the validation data; every divergence is measured against them."""
        return predict_outputs(self.dense, self.task, self.task.val_set)
